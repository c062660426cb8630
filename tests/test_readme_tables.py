"""The README's measured numbers are those of the committed records."""

import json
import re
import runpy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()
MARKED = re.compile(r"<!-- records: ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPO / "bench/readme_tables.py"))


@pytest.fixture
def run(script: dict[str, Any]) -> Callable[[Sequence[str]], int]:
    main: Callable[[Sequence[str]], int] = script["main"]
    return main


def test_it_is_fresh(run: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    """If not: python3 bench/readme_tables.py"""
    status = run(["--check"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({match[0] for match in MARKED.findall(README)}))
def test_an_altered_number_is_stale(
    name: str, run: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each table and of each number in the prose; writing puts it right."""
    begin = README.index(f"<!-- records: {name} -->") + len(f"<!-- records: {name} -->")
    digit = re.search(r"\d", README[begin:])
    assert digit is not None
    place = begin + digit.start()
    altered = README[:place] + str((int(digit[0]) + 1) % 10) + README[place + 1 :]
    readme = tmp_path / "README.md"
    readme.write_text(altered)
    assert run(["--check", "--readme", str(readme)]) == 1
    assert capsys.readouterr().out.count("\n-") == 1 and readme.read_text() == altered
    assert run(["--readme", str(readme)]) == 0
    assert readme.read_text() == README


def test_another_record_makes_it_stale(
    run: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bench_h100", "bench_h200", "fp8_queries_h100"):
        shutil.copy(REPO / f"bench/results/{name}.json", tmp_path)
    assert run(["--check", "--results", str(tmp_path)]) == 0
    path = tmp_path / "bench_h100.json"
    record = json.loads(path.read_text())
    (workload,) = (w for w in record["workloads"] if w["workload"] == "decode_b16_4k")
    for system in workload["systems"][:1]:
        system["times_us"] = [us * 2 for us in system["times_us"]]
    path.write_text(json.dumps(record))
    assert run(["--check", "--results", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    (row,) = (line for line in README.splitlines() if line.startswith("| 16 decodes of 4096 |"))
    assert f"-{row}" in shown
    (now,) = (line for line in shown.splitlines() if line.startswith("+| 16 decodes of 4096 |"))
    # us on the H100, and by FlashAttention-3's.
    for cell in (6, 8):
        before, after = (float(line.split("|")[cell]) for line in (row, now))
        assert after == pytest.approx(2 * before, rel=0.02)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("records: fp8-table", "records: fp9-table", "the README must have fp8-table"),
        ("records: h100-decodes", "records: h100-decode", "records: h100-decode is none of bench-table"),
    ],
)
def test_a_name_that_is_not_there(
    before: str, after: str, message: str, run: Callable[[Sequence[str]], int], tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README.replace(before, after))
    with pytest.raises(ValueError, match=message):
        run(["--check", "--readme", str(readme)])


def test_comments_leave_paragraphs_and_tables_whole(script: dict[str, Any]) -> None:
    """As Markdown reads them: a comment at the beginning of a line ends a paragraph."""
    tokens = MarkdownIt("commonmark").enable("table").parse(README)
    comments = [token.content.strip() for token in tokens if token.type == "html_block"]
    marks = [comment for comment in comments if comment == "<!-- end -->" or "records: " in comment]
    assert marks == [
        mark for name in script["TABLES"] for mark in (f"<!-- records: {name} -->", "<!-- end -->")
    ]
    tables = [i for i, token in enumerate(tokens) if token.type == "table_open"]
    rows = []
    for begin in tables:
        end = next(i for i in range(begin, len(tokens)) if tokens[i].type == "table_close")
        rows.append(sum(token.type == "tr_open" for token in tokens[begin:end]) - 1)
    assert len(script["BENCH"]) in rows and len(script["FP8"]) in rows
