"""The benchmark's page: all that a record holds is in it, and nothing that a record holds is more than text."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from html_page import Page
from onewave._cli import main
from onewave.bench.ceilings import H100
from onewave.bench.record import read_record
from onewave.bench.report.page import render
from onewave.bench.result import Result, WorkloadResult
from onewave.bench.table import format_us
from onewave.bench.workload import Request, Workload
from onewave.bench.workloads import WORKLOADS
from test_bench import fake_result
from test_cli import run_cli

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

# Of all kinds of workloads and results; one of its own, since those of bench/results are made anew.
RECORD = Path(__file__).resolve().parent / "records/bench.json"
RESULTS = Path(__file__).resolve().parent.parent / "bench/results"
SECTIONS = ("summary", "mixed", "prefill", "decode", "fp8", "halves")
SECTIONS += ("floor", "roofline", "scaling", "plans", "left-out", "method")
HEADER = {"commit": "0123abc", "date": "2026-01-02T03:04:05", "machine": {"device": "NVIDIA H100"}, "seed": 7}
HOSTILE = "</script></style></svg><script>alert('x')</script>\"' --> $\\frac{ {{ 7 * 7 }} {% raw %} &amp;"


@pytest.fixture(scope="module")
def h100_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the committed record, by the command."""
    folder = tmp_path_factory.mktemp("report") / "new"
    assert main(["bench", "--from", str(RECORD), "--report", str(folder)]) == 0
    assert (folder / "record.json").read_bytes() == RECORD.read_bytes()
    return (folder / "index.html").read_text()


@pytest.fixture(scope="module")
def h100(h100_html: str) -> Page:
    return Page(h100_html)


def rows_of(page: Page, caption_ends: str) -> list[list[str]]:
    """Of all tables whose captions end so."""
    tables = [table for table in page.tables if table.caption.endswith(caption_ends)]
    assert tables
    return [row for table in tables for row in table.rows[1:]]


def test_it_has_every_section(h100: Page) -> None:
    assert not set(SECTIONS) - set(h100.ids)
    links = [link.attributes["href"] for link in h100.find("a")]
    assert links == [f"#{section}" for section in SECTIONS]
    for axis in ("Batch size", "Page size"):
        assert axis in h100.text
    # No family of the record differs in these alone.
    for axis in ("Sequence length", "Chunk size"):
        assert f"{axis}: no three workloads of this record differ in that alone" in h100.text


def test_it_says_what_was_measured_on_what(h100: Page) -> None:
    for fact in ("NVIDIA H100 80GB HBM3", "580.159.04", "22796b4", "2026-11-26 19:27:03+0000", "2.11.0"):
        assert fact in h100.text
    assert re.search(r"SM clock, MHz\s*1980 \(1695 to 1980\)", h100.text)


def test_it_has_every_workload_and_system(h100: Page) -> None:
    record = read_record(RECORD)
    summary = {row[0]: row for row in h100.table("onewave and the best peer of each workload").rows[1:]}
    assert list(summary) == [result.workload.name for result in record.results]
    figures = {(row[0], row[1]): row for row in rows_of(h100, ": all figures")}
    times = {row[0]: row for row in rows_of(h100, ": us by workload and system")}
    plans = {row[0]: row for row in rows_of(h100, "us until plan() returns, by workload and system")}
    assert len(times) == len(plans) == len(record.results)
    num_timed = 0
    for result in record.results:
        name = result.workload.name
        for entry in result.timed:
            num_timed += 1
            row = figures[name, entry.system]
            assert row[2] == format_us(entry.us) and row[5] == f"{result.share_of_floor(entry):.2f}"
            assert any(cell.split(" ")[0] == row[2] for cell in times[name]), (name, entry.system)
            assert format_us(entry.plan_us[0]) in plans[name]
    assert len(figures) == num_timed == 243
    assert summary["decode_b20_8k"] == [
        *("decode_b20_8k", "243.9", "0.88", "0.902", "fa3", "270.5", "215.2"),
    ]


def test_it_says_who_was_left_out_and_why(h100: Page) -> None:
    """All that have no time, and the one that was wrong."""
    listed = {}
    for why, what, systems, workloads in h100.table("What a system cannot do is unsupported.").rows[1:]:
        names = re.sub(r"^\d+ workloads", "", workloads)
        for system in systems.split(", "):
            listed |= {(name, system): (what, why) for name in names.split(", ")}
    expected = {}
    for result in read_record(RECORD).results:
        for entry in result.results:
            if not entry.is_timed:
                expected[result.workload.name, entry.system] = ("unsupported", entry.failure)
    expected["lognormal_b160_chunk512/rest", "fi_batch"] = ("wrong", "error 0.00324, above 0.003")
    assert listed == expected and len(listed) == 151


def test_it_loads_nothing(h100: Page, h100_html: str) -> None:
    """The browser is told so too."""
    assert "://" not in h100_html
    for element in h100.elements:
        assert element.tag not in (
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "image",
            "audio",
            "video",
        )
        assert "src" not in element.attributes
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name.endswith("href"):
                assert value.startswith("#") or value == "data:,", element
    assert not re.findall(r"@import|url\((?!#)", h100_html)
    (policy,) = (meta.attributes["content"] for meta in h100.find("meta") if "http-equiv" in meta.attributes)
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_its_figures_are_whole(h100: Page, h100_html: str) -> None:
    """Each says in words what it shows; what its parts refer to is in it, and nowhere else."""
    figures = h100.find("svg")
    assert len(figures) == len(h100.find("figure")) == 5 * 2 + 2 + 2 + 1
    for figure in figures:
        assert figure.attributes["role"] == "img" and len(figure.attributes["aria-label"]) > 40
        assert "viewbox" in figure.attributes
    assert len(set(h100.ids)) == len(h100.ids)
    referred = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', h100_html))
    assert len(referred) > 50 and {first or second for first, second in referred} <= set(h100.ids)
    # Colours are the page's, so that they follow its scheme.
    for figure in re.findall(r"<svg.*?</svg>", h100_html, re.DOTALL):
        assert "var(--" in figure and not re.findall(r"#[0-9a-f]{6}(?![-0-9a-z])", figure)


def odd_record() -> list[WorkloadResult]:
    """One of everything that goes wrong, under names that are no words."""
    fine = Workload(HOSTILE, (Request(64, 1),) * 2)
    return [
        fake_result(),
        WorkloadResult(
            fine,
            [
                Result("onewave", [20.0], [5.0], [6.0], math.inf),
                Result(HOSTILE, [10.0], [5.0], [6.0], 0.002),
                Result("slow", [19.0, 30.0, 21.0], [5.0], [6.0], None),
                Result("broken", failure=f"RuntimeError: {HOSTILE}"),
            ],
            ceilings=H100,
        ),
        WorkloadResult(Workload("nobody", ()), [Result("onewave", failure="out of memory")], ceilings=H100),
    ]


@pytest.mark.filterwarnings("error")
def test_it_shows_failures_and_wrong_results() -> None:
    page = Page(render(HEADER, odd_record()))
    (left_out,) = (table for table in page.tables if table.caption.startswith("What a system cannot do"))
    assert left_out.rows[1:] == [
        ["error NaN, above 0.003", "wrong", "fi_batch", "prefill_1x8k"],
        ["error NaN, above 0.003", "wrong", "onewave", HOSTILE],
        ["RuntimeError: no nvcc [sic]", "failed", "fi_split", "prefill_1x8k"],
        [f"RuntimeError: {HOSTILE}", "failed", "broken", HOSTILE],
        ["out of memory", "failed", "onewave", "nobody"],
        ["needs both", "unsupported", "fa3_split, fa3_streams16", "prefill_1x8k"],
    ]
    prefill = page.table("Prefill and chunks: us by workload and system").rows
    assert prefill[0] == ["workload", "floor", "onewave", "fa3", "fi_batch", "fi_split"]
    assert prefill[1] == ["prefill_1x8k", "696.0", "800.0", "886.0", "500.0 wrong", "failed"]
    summary = page.table("onewave and the best peer of each workload").rows
    assert summary[2][0:2] == [HOSTILE, "20.0 wrong"]
    assert summary[3] == ["nobody", *["–"] * 5, "0.00"]
    # The fastest is wrong: the best is another.
    best = [element for element in page.find("td") if "best" in element.attributes.get("class", "").split()]
    assert [float(cell.attributes["data-sort"]) for cell in best] == [800.0, 10.0]


def test_names_are_no_more_than_text() -> None:
    header = {"commit": HOSTILE, "machine": {"device": HOSTILE, HOSTILE: HOSTILE}, "seed": 0}
    html = render(header, odd_record())
    page = Page(html)
    assert len(page.find("script")) == len(page.find("style")) == 1
    assert "<script>alert" not in html and page.text.count(HOSTILE) > 10
    titles = [figure.attributes["aria-label"] for figure in page.find("svg")]
    assert titles and not any("<" in title for title in titles)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [WorkloadResult(WORKLOADS["prefill_1x8k"], [Result("onewave", failure="no memory")])],
        [WorkloadResult(WORKLOADS["prefill_1x8k"], [Result("fa3", [800.0], [], [], 0.002)])],
        [WorkloadResult(Workload("empty", (Request(0, 0),)), [Result("onewave", [5.0], [1.0], [2.0], 0.0)])],
    ],
    ids=["no workload", "no time", "not ours", "no work"],
)
@pytest.mark.filterwarnings("error")
def test_of_little(results: list[WorkloadResult]) -> None:
    page = Page(render({}, results))
    assert not {"summary", "floor", "roofline", "scaling", "plans", "left-out"} - set(page.ids)
    assert "an unknown device" in page.text


def test_command_line_on_a_cpu(tmp_path: Path) -> None:
    """Seconds of smoke, and every section has a figure."""
    done = run_cli("bench", "--device", "cpu", "--runs", "1", "--report", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"wrote {tmp_path / 'out' / 'index.html'}" in done.stdout
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    names = [workload["workload"] for workload in record["workloads"]]
    assert "smoke" in names and all(name.startswith("smoke") for name in names)
    page = Page((tmp_path / "out" / "index.html").read_text())
    titles = [figure.attributes["aria-label"] for figure in page.find("svg")]
    for words in ("Mixed batches: micro", "Share of the floor", "Roofline", "until plan() returns"):
        assert any(words in title for title in titles), words
    for axis in ("Batch size", "Sequence length", "Page size", "Chunk size"):
        assert sum(title.startswith(axis) for title in titles) == 1
    assert "Measured on a CPU" in page.text and "Every system did every workload" in page.text


def test_command_line_makes_a_page_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the record that lies there."""
    shutil.copy(RESULTS / "dims_h200.json", tmp_path / "record.json")
    before = (tmp_path / "record.json").read_bytes()
    assert main(["bench", "--from", str(tmp_path / "record.json"), "--report", str(tmp_path)]) == 0
    assert (tmp_path / "record.json").read_bytes() == before
    assert "NVIDIA H200" in (tmp_path / "index.html").read_text()
    assert "onewave and the best peer" in capsys.readouterr().out


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--from", str(tmp_path / "none.json"), "--report", str(tmp_path / "out")]) == 2
    assert "none.json" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main(["bench", "--from", str(RESULTS / "soak_h100.json")]) == 2
    assert "is no record of bench --json" in capsys.readouterr().out
    assert main(["bench", "--from", str(RECORD), "--workloads", "prefill_*"]) == 2
    assert "--from measures nothing" in capsys.readouterr().out


@pytest.mark.parametrize(("package", "name"), [("jinja2", "Jinja2"), ("matplotlib", "matplotlib")])
def test_command_line_without_a_package(
    package: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is measured."""
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert main(["bench", "--device", "cpu", "--report", str(tmp_path / "out")]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert f"--report needs {name}: python3 -m pip install 'onewave[bench]'" in shown
    assert not (tmp_path / "out").exists()


def test_help() -> None:
    shown = " ".join(run_cli("bench", "--help").stdout.split())
    assert "--report DIR write a page of tables and plots, DIR/index.html, and DIR/record.json" in shown
    assert "--from FILE measure nothing: show what --json wrote" in shown
