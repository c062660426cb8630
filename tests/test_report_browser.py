"""The benchmark's page in Chromium, where one is installed: `apt-get install chromium`, which CI does without."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page
from needs import optional_program
from onewave.bench.record import read_record
from onewave.bench.report.page import write_report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

RECORD = Path(__file__).resolve().parent / "records/bench.json"
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
# A page may log what it did not like: here, of what it refuses to load.
INTRUDER = '<img src="https://onewave.invalid/a.png" alt="">'
SIZES_OF_FIGURES = """[...document.querySelectorAll("figure svg")].map(figure => {
  const box = figure.getBoundingClientRect();
  return [box.width, box.height, figure.querySelectorAll("use, path").length];
})"""
RATIOS = """[...document.querySelectorAll("#summary tbody tr")].map(row => row.cells[3].innerText)"""


@pytest.fixture(scope="module")
def chromium() -> str:
    return optional_program("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def report(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it can be looked at."""
    assert chromium
    record = read_record(RECORD)
    return write_report(tmp_path_factory.mktemp("report"), record.header, record.results)


@pytest.fixture
def page(chromium: str, tmp_path: Path) -> Iterator[Page]:
    with Page(chromium, tmp_path / "profile") as page:
        yield page


def test_it_is_whole_at_every_width_in_every_scheme(page: Page, report: Path) -> None:
    backgrounds = set()
    for width in WIDTHS:
        for scheme in SCHEMES:
            page.show(width, 900, scheme)
            page.open(report)
            # Tables scroll by themselves; the page does not go sideways.
            assert page.evaluate("document.documentElement.scrollWidth") == width
            sizes = page.evaluate(SIZES_OF_FIGURES)
            assert len(sizes) == 15
            for figure_width, height, num_parts in sizes:
                assert 300 < figure_width <= width and height > 80 and num_parts > 5
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert page.evaluate("document.title") == "onewave benchmark, NVIDIA H100 80GB HBM3"
    assert len(backgrounds) == len(SCHEMES)
    assert page.messages == []
    assert set(page.requests) == {report.as_uri()}


def test_tables_sort(page: Page, report: Path) -> None:
    """Up, then down, what has no number last."""
    page.open(report)
    before = page.evaluate(RATIOS)
    numbers = sorted(float(ratio) for ratio in before if ratio != "–")
    for direction in (1, -1):
        page.evaluate("document.querySelectorAll('#summary th button')[3].click()")
        after = page.evaluate(RATIOS)
        assert sorted(after) == sorted(before)
        assert [float(ratio) for ratio in after[: len(numbers)]] == numbers[::direction]
        assert set(after[len(numbers) :]) == {"–"}
    page.evaluate("document.querySelectorAll('#summary th button')[0].click()")
    names = page.evaluate(
        "[...document.querySelectorAll('#summary tbody tr')].map(row => row.cells[0].innerText)"
    )
    assert names[:2] == ["chunk_2k_on_32k", "chunk_2k_on_32k_fp8"]


def test_it_would_load_nothing(page: Page, report: Path, tmp_path: Path) -> None:
    """Even if something got into it: its policy stops that, and the browser says so."""
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(
        report.read_text().replace("</main>", f"{INTRUDER}<script>document.title = 'spoilt'</script></main>")
    )
    page.open(spoilt)
    assert page.evaluate("document.title") != "spoilt"
    assert len(page.messages) == 2 and all("Content Security Policy" in text for text in page.messages)
