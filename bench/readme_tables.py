"""The README's measured numbers, from bench/results/*.json. Needs no GPU.

    python3 bench/readme_tables.py            # writes them
    python3 bench/readme_tables.py --check    # exit status 1 where they are others; a test does this

A number or table stands between `<!-- records: NAME -->` and `<!-- end -->`; NAME is one of those below. A line must not
begin with such a comment, unless a table follows: Markdown would end the paragraph there.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from onewave.bench.record import Record, read_record
from onewave.bench.result import OURS_FIXED, Result, WorkloadResult

REPO = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- records: (?P<name>[\w-]+) -->)(?P<text>.*?)(<!-- end -->)", re.DOTALL)
FA3 = "fa3"


class Row(NamedTuple):
    """Of a table: what the README calls a workload."""

    what: str
    workload: str


MIXED = (
    Row("128 decodes of 8192 and a chunk of 4096, 28/4 heads, page 16", "hybrid_qwen7b_p16"),
    Row("the same, 32/8 heads, page 1", "fi_hybrid_qwen8b_p1"),
    Row("the same, 64/8 heads, page 1", "fi_hybrid_llama70b_p1"),
    Row("the same, 64/4 heads, head_dim 64, page 1", "fi_hybrid_qwenmoe_d64_p1"),
    Row("64 log-normal decodes and a chunk of 2048", "lognormal_b64_chunk2k"),
    Row("160 log-normal decodes and a chunk of 512, 28/4 heads", "lognormal_b160_chunk512"),
    Row("48 verifications of 5 tokens and 32 decodes, 40/8 heads", "spec_b48_q5_decode_b32"),
    Row("24 short decodes and a prompt of 256", "short_b24_prompt256"),
)
BENCH = (
    Row("prefill, 8192 tokens, page 16", "prefill_1x8k"),
    Row("the same with page 1", "prefill_1x8k_p1"),
    Row("the same with head_dim 64, 64/8 heads, page 16", "prefill_1x8k_d64"),
    Row("prefill, 8 x 2048 tokens, page 16", "prefill_8x2k"),
    Row("24 prompts of 16 to 12000 tokens, page 16", "prefill_ragged_b24"),
    Row("a chunk of 2048 on 32768 cached tokens", "chunk_2k_on_32k"),
    Row("128 decodes of 8192, page 16", "decode_uniform_b128_8k"),
    Row("64 decodes of log-normal lengths", "decode_lognormal_b64"),
    Row("16 decodes of 4096", "decode_b16_4k"),
    *MIXED,
)
# Those that have the workload with a cache of fp8, and with queries of fp8 too.
FP8 = (
    Row("128 decodes of 8192 and a chunk of 4096, 28/4 heads", "hybrid_qwen7b_p16"),
    Row("prefill, 8192 tokens", "prefill_1x8k"),
    Row("the same, 64/8 heads of 64", "prefill_1x8k_d64"),
    Row("the same, 16/8 heads of 256", "prefill_1x8k_d256"),
    Row("a chunk of 2048 on 32768 cached tokens", "chunk_2k_on_32k"),
    Row("128 decodes of 8192", "decode_uniform_b128_8k"),
    Row("64 verifications of 16 tokens on 4096", "spec_b64_q16_4k"),
)


class Records:
    """Of a folder."""

    def __init__(self, folder: Path) -> None:
        self._read = cache(lambda name: read_record(folder / f"{name}.json"))

    def __getitem__(self, name: str) -> Record:
        return self._read(name)

    def find(self, name: str, workload: str) -> WorkloadResult | None:
        results = self[name].results
        return next((result for result in results if result.workload.name == workload), None)

    def result(self, name: str, workload: str) -> WorkloadResult:
        found = self.find(name, workload)
        if found is None:
            raise ValueError(f"{name}.json has no workload {workload!r}")
        return found


def ours_of(result: WorkloadResult) -> Result:
    if result.ours is None or not result.ours.is_right:
        raise ValueError(f"{result.workload.name} has no right result of onewave")
    return result.ours


def ratio_to(result: WorkloadResult, system: str) -> float:
    """Our time over a system's."""
    return ours_of(result).us / next(entry.us for entry in result.timed if entry.system == system)


def best_of(result: WorkloadResult) -> Result:
    if result.best_peer is None:
        raise ValueError(f"{result.workload.name} has no peer")
    return result.best_peer


def best_ratio(result: WorkloadResult) -> float:
    return ours_of(result).us / best_of(result).us


def named(text: str, peer: Result) -> str:
    """FlashAttention-3 in one launch goes without saying."""
    return text if peer.system == FA3 else f"{text} ({peer.system})"


def table(headings: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, "|" + "---|" * (headings.count("|") - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def bench_table(records: Records) -> str:
    def cells(name: str, workload: str) -> list[str]:
        result = records.result(name, workload)
        ours = ours_of(result)
        best = named(f"{best_ratio(result):.2f}", best_of(result))
        return [f"{ours.us:.0f}", f"{result.share_of_floor(ours):.2f}", f"{ratio_to(result, FA3):.2f}", best]

    rows = [
        [row.what, *(c for gpu in ("h200", "h100") for c in cells(f"bench_{gpu}", row.workload))]
        for row in BENCH
    ]
    return table("| | H200 us | floor | FA3 | best | H100 us | floor | FA3 | best |", rows)


def fp8_table(records: Records) -> str:
    def cells(workload: str) -> list[str]:
        plain = records.find("fp8_queries_h100", workload)
        of_another = "" if plain is not None else " (`bench_h100.json`)"
        ours = ours_of(plain or records.result("bench_h100", workload))
        cache, queries = (
            records.result("fp8_queries_h100", workload + suffix) for suffix in ("_fp8", "_fp8q")
        )
        times = [f"{ours_of(result).us:.0f}" for result in (cache, queries)]
        peer = best_of(queries)
        return [f"{ours.us:.0f}{of_another}", *times, named(f"{peer.us:.0f}", peer)]

    headings = "| | bf16, us | fp8 cache, bf16 queries | fp8 cache and queries | FlashAttention-3 in fp8 |"
    return table(headings, [[row.what, *cells(row.workload)] for row in FP8])


def mixed_range(records: Records, name: str, number: Callable[[WorkloadResult], float]) -> str:
    numbers = [number(records.result(name, row.workload)) for row in MIXED]
    return f"{min(numbers):.2f} to {max(numbers):.2f}"


def fixed_cost(records: Records, name: str) -> str:
    """What fixed splits cost at least and at most, in percent; "up to" where some gain."""
    costs = [100 / ratio_to(records.result(name, row.workload), OURS_FIXED) - 100 for row in MIXED]
    return f"{min(costs):.0f} to {max(costs):.0f} %" if min(costs) > 0 else f"up to {max(costs):.0f} %"


def share(records: Records, name: str, workload: str) -> str:
    result = records.result(name, workload)
    return f"{result.share_of_floor(ours_of(result)):.2f}"


def commit(records: Records, name: str) -> str:
    return str(records[name].header["commit"])[:7]


TABLES = {"bench-table": bench_table, "fp8-table": fp8_table}
NUMBERS: dict[str, Callable[[Records], str]] = {
    f"{gpu}-{what}": partial(number, name=f"bench_{gpu}", **more)
    for gpu in ("h200", "h100")
    for what, number, more in (
        ("mixed-fa3", mixed_range, {"number": partial(ratio_to, system=FA3)}),
        ("mixed-best", mixed_range, {"number": best_ratio}),
        ("mixed-fixed", fixed_cost, {}),
        ("decodes", share, {"workload": "decode_uniform_b128_8k"}),
        ("commit", commit, {}),
    )
}
NUMBERS["fp8-commit"] = partial(commit, name="fp8_queries_h100")


def rewrite(text: str, records: Records) -> str:
    """The README with the numbers of the records. Raises ValueError for a name that is not there, or a table missing."""

    def fresh(match: re.Match[str]) -> str:
        name = match["name"]
        if name in TABLES:
            return f"{match[1]}\n{TABLES[name](records)}\n{match[4]}"
        if name not in NUMBERS:
            raise ValueError(f"records: {name} is none of {', '.join([*TABLES, *NUMBERS])}")
        return f"{match[1]}{NUMBERS[name](records)}{match[4]}"

    missing = set(TABLES) - {match["name"] for match in MARKED.finditer(text)}
    if missing:
        raise ValueError(f"the README must have {', '.join(sorted(missing))}, each once")
    return MARKED.sub(fresh, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--readme", type=Path, default=REPO / "README.md", metavar="FILE")
    parser.add_argument("--results", type=Path, default=REPO / "bench/results", metavar="DIR")
    options = parser.parse_args(arguments)
    before = options.readme.read_text()
    after = rewrite(before, Records(options.results))
    if not options.check:
        options.readme.write_text(after)
        return 0
    difference = difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(options.readme), "bench/results", lineterm="", n=0
    )
    lines = list(difference)
    print(*lines, sep="\n" if lines else "", end="\n" if lines else "")
    return 1 if before != after else 0


if __name__ == "__main__":
    sys.exit(main())
