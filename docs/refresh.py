"""Writes what the pages of this folder quote: `python3 docs/refresh.py`, beside an installed onewave[bench].

The tables of plan_format.md come from plan_format.h and the offsets of the library, the outputs and pictures of
scheduler.md from the commands that it shows, times of tuning.md and profiling.md from the records that their comments name.
tests/test_docs.py fails where something is out of date.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from onewave.plan_format import record_dtypes

DOCS = Path(__file__).resolve().parent
HEADER = DOCS.parent / "cpp/include/onewave/plan_format.h"
RESULTS = DOCS.parent / "bench/results"
COLUMNS = "100"


def main() -> None:
    for name, refresh in (
        ("plan_format.md", with_fields),
        ("scheduler.md", with_outputs),
        ("tuning.md", with_times),
        ("profiling.md", with_times),
    ):
        page = DOCS / name
        page.write_text(refresh(page.read_text()))


def with_fields(text: str) -> str:
    """The page with the table of each record that it marks."""
    return re.sub(
        r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{field_table(match[2])}{match[3]}",
        text,
        flags=re.DOTALL,
    )


def field_table(record: str) -> str:
    """Offsets are those that the library was compiled with, types and comments the header's."""
    dtype = record_dtypes()[record]
    assert dtype.names is not None and dtype.fields is not None
    declared = declared_fields(record)
    assert list(declared) == list(dtype.names), f"{record} of the header is not the library's"
    rows = [
        f"| {dtype.fields[name][1]} | `{name}` | `{kind}` | {meaning} |\n"
        for name, (kind, meaning) in declared.items()
    ]
    head = f"{dtype.itemsize} bytes.\n\n| offset | field | type | |\n|---|---|---|---|\n"
    return f"\n{head}{''.join(rows)}\n"


def declared_fields(record: str) -> dict[str, tuple[str, str]]:
    """Type and comment of each field of a struct of plan_format.h."""
    match = re.search(rf"^struct {record} {{\n(.*?)^}};", HEADER.read_text(), re.MULTILINE | re.DOTALL)
    assert match, f"plan_format.h has no struct {record}"
    fields = re.findall(r"(\w+)\s+(\w+);((?:\s*///<[^\n]*)*)", match[1])
    return {name: (kind, markdown(comment)) for kind, name, comment in fields}


def markdown(comment: str) -> str:
    text = " ".join(re.sub(r"\s*///<\s*", " ", comment).split())
    # What looks like code, and what a table takes for a cell's end.
    text = re.sub(r"(?<![\w`])(\w+\[[^\]]*\]|\w+_\w+(?:\(\))?|k[A-Z]\w+)(?![\w`])", r"`\1`", text)
    return text.replace("|", r"\|")


def with_outputs(text: str) -> str:
    """The page with what its `plan` commands print now; their pictures are written too."""
    return re.sub(
        r"^(\$ (python3 -m onewave plan [^\n]*)\n).*?(?=^\$ |^```)",
        lambda match: match[1] + output_of(match[2]),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def output_of(command: str) -> str:
    words = [sys.executable, *shlex.split(command)[1:]]
    folder = DOCS / "images"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"COLUMNS": COLUMNS, "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def with_times(text: str) -> str:
    """The page with the time of each workload that it names: 785<!-- bench_h100 prefill_1x8k [system] -->."""
    return re.sub(
        r"[\d.]+(<!-- (\w+) ([\w/]+)(?: (\w+))? -->)",
        lambda match: format_us(times_of(match[2])[match[3], match[4] or "onewave"]) + match[1],
        text,
    )


@functools.cache
def times_of(record: str) -> dict[tuple[str, str], float]:
    """In microseconds, by workload and system."""
    workloads = json.loads((RESULTS / f"{record}.json").read_text())["workloads"]
    return {
        (workload["workload"], system["system"]): system["us"]
        for workload in workloads
        for system in workload["systems"]
        if system.get("us") is not None
    }


def format_us(us: float) -> str:
    return f"{us:.0f}" if us >= 20 else f"{us:.1f}"


if __name__ == "__main__":
    main()
