"""What the terminal shows: a table for each workload, and one for all."""

import math
import statistics
from collections.abc import Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from onewave.bench.ceilings import Ceilings
from onewave.bench.result import OURS, Result, WorkloadResult
from onewave.bench.workload import Workload


def print_result(console: Console, result: WorkloadResult) -> None:
    """A line on the workload, the table, and a line for each system that is not in it."""
    workload = result.workload
    console.print(f"[bold]{workload.name}[/]  {workload.describe()}", highlight=False)
    console.print(_floor_line(result), highlight=False)
    if result.timed:
        console.print(_table(result))
    reasons: dict[str, list[str]] = {}
    for left_out in result.results:
        if left_out.failure is None:
            continue
        if left_out.is_unsupported:
            reasons.setdefault(left_out.failure, []).append(left_out.system)
        else:
            console.print(f"  {left_out.system} failed: {left_out.failure}", style="red", markup=False)
    for reason, names in reasons.items():
        console.print(f"  left out: {', '.join(names)} ({reason})", style="dim", markup=False)


def summary_table(results: Iterable[WorkloadResult]) -> Table:
    """Us and the best peer of each workload."""
    table = Table(title="onewave and the best peer", box=SIMPLE_HEAD)
    table.add_column("workload")
    for heading in ("floor us", "us", "of floor", "best peer", "its us", "ratio"):
        table.add_column(heading, justify="right")
    for result in results:
        ours, peer = result.ours, result.best_peer
        row = [result.workload.name, format_us(result.floor_us)]
        row += ["-", "-"] if ours is None else [format_us(ours.us), f"{result.share_of_floor(ours):.2f}"]
        row += (
            ["-", "-", "-"] if peer is None else [peer.system, format_us(peer.us), format_ratio(result, peer)]
        )
        table.add_row(*row)
    return table


def workload_table(workloads: Mapping[str, Workload], ceilings: Ceilings) -> Table:
    """The answer to --list."""
    table = Table(
        title=f"workloads: requests as (kv_len, qo_len), floors of an {ceilings.gpu}", box=SIMPLE_HEAD
    )
    table.add_column("name", no_wrap=True)
    table.add_column("floor us", justify="right")
    table.add_column("what")
    for workload in workloads.values():
        table.add_row(workload.name, format_us(workload.floor_us(ceilings)), workload.describe())
    return table


def _floor_line(result: WorkloadResult) -> str:
    workload = result.workload
    line = (
        f"  floor {format_us(result.floor_us)} us ({result.ceilings.gpu}): "
        f"{workload.num_bytes / 1e9:.3f} GB, {workload.num_flop / 1e12:.3f} TFLOP"
    )
    if not result.clocks_mhz:
        return line
    lowest, highest = min(result.clocks_mhz), max(result.clocks_mhz)
    return f"{line}; SM clock {statistics.median(result.clocks_mhz):.0f} MHz ({lowest} to {highest})"


def _table(result: WorkloadResult) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=True)
    table.add_column("system", no_wrap=True)
    num_ctas = result.workload.num_ctas
    headings = ["us", "of floor", "GB/s", "TFLOP/s", "plan us", "error", "ours / it"]
    if num_ctas is not None:
        headings.append("GB/s per CTA")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in result.timed:
        row = [
            entry.system,
            format_us(entry.us),
            f"{result.share_of_floor(entry):.2f}",
            f"{result.gb_per_s(entry):.0f}",
            f"{result.tflop_per_s(entry):.0f}",
            format_us(statistics.median(entry.plan_us)) if entry.plan_us else "-",
            _error(entry),
            "" if entry.system == OURS else format_ratio(result, entry),
        ]
        if num_ctas is not None:
            row.append(f"{result.gb_per_s(entry) / num_ctas:.1f}")
        table.add_row(*row, style="bold" if entry.system == OURS else None)
    return table


def _error(entry: Result) -> str:
    if entry.relative_error is None:
        return "-"
    shown = "NaN" if math.isinf(entry.relative_error) else f"{entry.relative_error:.5f}"
    return shown if entry.is_right else f"[red]{shown} WRONG[/]"


def format_ratio(result: WorkloadResult, peer: Result) -> str:
    ratio = result.ratio(peer)
    return "-" if ratio is None else f"{ratio:.3f}"


def format_us(us: float) -> str:
    return f"{us:.2f}" if us < 1 else f"{us:.1f}" if us < 1000 else f"{us:.0f}"
