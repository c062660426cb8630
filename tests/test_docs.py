"""docs/ says what is so: its site builds without a warning, all of its code runs, and what it quotes is as it was."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import refresh
from cmake_build import copy_sources
from doc_blocks import Blocks, block_lines
from doc_checks import CHECKS
from doc_commands import REPO, Commands
from needs import missing
from onewave.plan_format import record_dtypes

DOCS = REPO / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ON_A_GPU = [
    "tutorial_python.md",
    "tutorial_cpp.md",
    "moving_from_flashinfer.md",
    "moving_from_flash_attention.md",
]
NUMPY_CODES = {"int32_t": "<i4", "uint32_t": "<u4", "uint16_t": "<u2", "uint64_t": "<u8", "float": "<f4"}


def blocks_of(page: Path, folder: Path, device: str) -> Blocks:
    return Blocks(page, folder, Commands(folder, device), device)


@pytest.mark.parametrize("page", [REPO / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_block_has_an_evaluator(page: Path, tmp_path: Path) -> None:
    unknown = set(block_lines(page.read_text())) - set(blocks_of(page, tmp_path, "cpu").lines())
    assert not unknown, f"{page.name}: unknown blocks at lines {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_A_GPU)
def test_the_blocks_run_on_a_gpu(name: str, tmp_path: Path) -> None:
    run_page(DOCS / name, tmp_path, "cuda")


def run_page(page: Path, folder: Path, device: str) -> None:
    if page.name == "kernel_variants.md":
        copy_sources(folder)
    names = blocks_of(page, folder, device).run()
    if check := CHECKS.get(page.name):
        check(names)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    try:
        import furo  # noqa: F401
        import myst_parser  # noqa: F401
    except ImportError as error:
        missing(str(error))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, tmp_path / "site"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "plan_step" in (tmp_path / "site/tutorial_python.html").read_text()


def test_the_tables_of_records_are_those_of_the_library() -> None:
    page = (DOCS / "plan_format.md").read_text()
    tables = dict(re.findall(r"<!-- fields of (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL))
    assert tables.keys() == record_dtypes().keys()
    for record, dtype in record_dtypes().items():
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \| `(\w+)` \|", tables[record], re.MULTILINE)
        fields = {name: (np.dtype(NUMPY_CODES[kind]), int(offset)) for offset, name, kind in rows}
        assert dtype.fields is not None and fields == dict(dtype.fields), record
        assert f"\n{dtype.itemsize} bytes.\n" in tables[record], record


@pytest.mark.parametrize(
    ("name", "refreshed"),
    [
        ("plan_format.md", refresh.with_fields),
        ("tuning.md", refresh.with_times),
        ("profiling.md", refresh.with_times),
    ],
)
def test_what_pages_quote_is_up_to_date(name: str, refreshed: Callable[[str], str]) -> None:
    """Outputs of commands are compared where the blocks run."""
    page = (DOCS / name).read_text()
    assert refreshed(page) == page, "run python3 docs/refresh.py"


def test_records_that_are_cited_are_of_the_commits_that_are_named() -> None:
    """A record that was made anew has other numbers: the text around it has to be looked at."""
    cited = [
        (page.name, *citation)
        for page in PAGES
        for citation in re.findall(r"`bench/results/(\w+\.json)`,\s+([0-9a-f]{7})\b", page.read_text())
    ]
    assert len(cited) >= 5
    for page, record, commit in cited:
        found = json.loads((REPO / "bench/results" / record).read_text())["commit"]
        assert found == commit, f"{page}: {record} is of {found} now, not of {commit}"


@pytest.mark.parametrize("page", [REPO / "README.md", *PAGES], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`((?:\.ci|bench|cmake|cpp|cuda|docs|python|tests)/[\w./-]*)`", page.read_text())
    missing_files = [name for name in named if not (REPO / name).exists()]
    assert not missing_files
