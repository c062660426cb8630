"""The tables of the page, as text and what it is sorted by."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onewave.bench.report.palette import Palette
from onewave.bench.result import OURS, Result, WorkloadResult
from onewave.bench.table import format_ratio, format_us


class Cell(NamedTuple):
    text: str
    sort: float | str | None = None  # None: behind all others
    kind: str = ""  # of CSS: best, wrong, failed, faster, slower
    note: str = ""  # in small, below


class Column(NamedTuple):
    title: str
    is_number: bool = True
    variable: str | None = None  # of CSS, with a system's colour


@dataclass
class Table:
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]


EMPTY = Cell("–")
# Of a ratio from 1, for which neither is called faster.
EVEN = 0.005
KINDS = ("wrong", "failed", "unsupported")
WRONG = " wrong"


def summary_table(results: Iterable[WorkloadResult]) -> Table:
    """Us and the best peer of each workload."""
    titles = ("onewave us", "of floor", "ours / it", "best peer", "its us", "floor us")
    columns = [
        Column("workload", False),
        *(Column(title, is_number=title != "best peer") for title in titles),
    ]
    rows = []
    for result in results:
        ours, peer = result.ours, result.best_peer
        row = [Cell(result.workload.name, result.workload.name)]
        row += [EMPTY, EMPTY] if ours is None else [_ours(ours), _share(result, ours)]
        if peer is None:
            row += [EMPTY] * 3
        else:
            row += [ratio_cell(result, peer), Cell(peer.system, peer.system), _us(peer.us)]
        rows.append([*row, _us(result.floor_us)])
    return Table("onewave and the best peer of each workload", columns, rows)


def times_table(results: Sequence[WorkloadResult], palette: Palette, caption: str) -> Table:
    """Medians of each system, the fastest right one marked."""
    systems = _systems(results, palette)
    columns = [Column("workload", False), Column("floor")]
    columns += [Column(system, variable=palette.variable(system)) for system in systems]
    rows = []
    for result in results:
        entries = {entry.system: entry for entry in result.results}
        best = min((entry.us for entry in result.timed if entry.is_right), default=None)
        row = [_workload(result), _us(result.floor_us)]
        row += [_time(entries.get(system), best) for system in systems]
        rows.append(row)
    return Table(caption, columns, rows)


def figures_table(results: Sequence[WorkloadResult], caption: str) -> Table:
    """All that was measured."""
    numbers = ("us", "least", "most", "of floor", "GB/s", "TFLOP/s", "plan us", "error", "ours / it")
    columns = [Column("workload", False), Column("system", False), *(Column(title) for title in numbers)]
    rows = []
    for result in results:
        for entry in result.timed:
            gb_per_s, tflop_per_s = result.gb_per_s(entry), result.tflop_per_s(entry)
            rows.append(
                [
                    Cell(result.workload.name, result.workload.name),
                    Cell(entry.system, entry.system),
                    _us(entry.us),
                    _us(min(entry.times_us)),
                    _us(max(entry.times_us)),
                    _share(result, entry),
                    Cell(f"{gb_per_s:.0f}", gb_per_s),
                    Cell(f"{tflop_per_s:.0f}", tflop_per_s),
                    _us(statistics.median(entry.plan_us)) if entry.plan_us else EMPTY,
                    _error(entry),
                    EMPTY if entry.system == OURS else ratio_cell(result, entry),
                ]
            )
    return Table(caption, columns, rows)


def plans_table(results: Sequence[WorkloadResult], palette: Palette) -> Table:
    """Medians of the host's time."""
    systems = [
        system
        for system in palette.looks
        if any(entry.plan_us for result in results for entry in result.timed if entry.system == system)
    ]
    columns = [Column("workload", False), Column("requests")]
    columns += [Column(system, variable=palette.variable(system)) for system in systems]
    rows = []
    for result in results:
        plans = {entry.system: statistics.median(entry.plan_us) for entry in result.timed if entry.plan_us}
        count = len(result.workload.requests)
        row = [Cell(result.workload.name, result.workload.name), Cell(str(count), count)]
        rows.append(row + [_us(plans[system]) if system in plans else EMPTY for system in systems])
    return Table("us until plan() returns, by workload and system", columns, rows)


class LeftOut(NamedTuple):
    """Workloads on which systems gave no time, or a wrong result, for one reason."""

    kind: str  # of CSS: wrong, failed, unsupported
    reason: str
    systems: list[str]
    workloads: list[str]


def left_out(results: Iterable[WorkloadResult]) -> list[LeftOut]:
    """What is worst comes first. Systems with a reason for the same workloads are in one row."""
    workloads: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        for entry in result.results:
            if not (entry.is_timed and entry.is_right):
                workloads.setdefault((*_reason(entry), entry.system), []).append(result.workload.name)
    systems: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (kind, reason, system), names in workloads.items():
        systems.setdefault((kind, reason, tuple(names)), []).append(system)
    rows = [LeftOut(kind, reason, found, list(names)) for (kind, reason, names), found in systems.items()]
    return sorted(rows, key=lambda row: KINDS.index(row.kind))


def _reason(entry: Result) -> tuple[str, str]:
    """Of KINDS, and a line."""
    if not entry.is_timed:
        return "unsupported" if entry.is_unsupported else "failed", entry.failure or "was not timed"
    error = _error(entry).text.removesuffix(WRONG)
    return "wrong", f"error {error}, above {entry.max_relative_error:g}"


def ratio_cell(result: WorkloadResult, peer: Result) -> Cell:
    """Our time over the peer's."""
    ratio = result.ratio(peer)
    if ratio is None:
        return EMPTY
    kind = "" if abs(ratio - 1) <= EVEN else "faster" if ratio < 1 else "slower"
    return Cell(format_ratio(result, peer), ratio, kind)


def _systems(results: Iterable[WorkloadResult], palette: Palette) -> list[str]:
    """Those that are supported on one of the workloads: the others have no column, but are listed as left out."""
    found = {entry.system for result in results for entry in result.results if not entry.is_unsupported}
    return [system for system in palette.looks if system in found]


def _workload(result: WorkloadResult) -> Cell:
    workload = result.workload
    return Cell(workload.name, workload.name, note=workload.describe())


def _us(us: float) -> Cell:
    return Cell(format_us(us), us)


def _ours(ours: Result) -> Cell:
    return _us(ours.us) if ours.is_right else Cell(format_us(ours.us) + WRONG, ours.us, "wrong")


def _share(result: WorkloadResult, entry: Result) -> Cell:
    share = result.share_of_floor(entry)
    return Cell(f"{share:.2f}" if share >= 0.01 else f"{share:.1g}", share)


def _time(entry: Result | None, best: float | None) -> Cell:
    if entry is None:
        return EMPTY
    if not entry.is_timed:
        return Cell("–") if entry.is_unsupported else Cell("failed", kind="failed")
    if not entry.is_right:
        return Cell(format_us(entry.us) + WRONG, entry.us, "wrong")
    return Cell(format_us(entry.us), entry.us, "best" if entry.us == best else "")


def _error(entry: Result) -> Cell:
    if entry.relative_error is None:
        return EMPTY
    text = "NaN" if math.isinf(entry.relative_error) else f"{entry.relative_error:.5f}"
    if entry.is_right:
        return Cell(text, entry.relative_error)
    return Cell(text + WRONG, entry.relative_error, "wrong")
