"""The subcommand: its options, and one pass over the workloads."""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import onewave
from onewave._jinja import MissingJinja
from onewave._matplotlib import MissingMatplotlib
from onewave.bench import machine
from onewave.bench.ceilings import device_ceilings
from onewave.bench.harness import NUM_WARMUPS, Harness, one_line
from onewave.bench.plot import check_matplotlib, write_plot
from onewave.bench.record import read_record
from onewave.bench.registry import all_systems, available_systems, select_systems
from onewave.bench.report.header import title_of
from onewave.bench.report.page import check_packages, write_report
from onewave.bench.result import OURS, Result, WorkloadResult, write_json
from onewave.bench.system import Prepare
from onewave.bench.table import print_result, summary_table, workload_table
from onewave.bench.timing import FLUSH_BYTES
from onewave.bench.workload import Workload
from onewave.bench.workloads import SMOKE, WORKLOADS, default_workloads, report_workloads, select_workloads
from onewave.workspace import resolve_device

# Of lines that no terminal limits.
FILE_WIDTH = 110
# Beside the page.
RECORD = "record.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="print workloads and systems, measure nothing")
    parser.add_argument(
        "--workloads",
        metavar="NAMES",
        help="names or globs, with commas (default: all of --list without a slash; with --report also scaling/*)",
    )
    parser.add_argument(
        "--systems",
        metavar="NAMES",
        help="names or globs, with commas (default: onewave and the peers found)",
    )
    parser.add_argument("--device", default="cuda", help="cpu: the executor, on the workload 'smoke'")
    parser.add_argument(
        "--runs", type=int, default=20, help="of which the median is shown (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random values (default: %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="do not compare outputs with float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw shares of the floor (needs matplotlib)"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help=f"write a page of tables and plots, DIR/index.html, and DIR/{RECORD} (needs onewave[bench])",
    )
    parser.add_argument(
        "--from",
        dest="record",
        type=Path,
        metavar="FILE",
        help="measure nothing: show what --json wrote, for --report and --plot too",
    )
    parser.add_argument(
        "--commit", help="what is measured, for the JSON (default: as git says in this folder)"
    )
    parser.add_argument(
        "--fa3-library",
        type=Path,
        metavar="PATH",
        default=os.environ.get("ONEWAVE_FA3_LIBRARY") or None,
        help="FlashAttention-3's operators, _vllm_fa3_C.abi3.so of a vLLM wheel (default: ONEWAVE_FA3_LIBRARY)",
    )


def run_bench(options: argparse.Namespace) -> int:
    """The exit status: 1 where onewave failed or was wrong, 2 for arguments or a device that cannot be used."""
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH)
    if options.list:
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        console.print(workload_table(WORKLOADS, device_ceilings(here)))
        console.print(f"systems: {', '.join(all_systems(None))}", highlight=False)
        return 0
    try:
        if options.plot is not None:
            check_matplotlib()
        if options.report is not None:
            check_packages()
        header, results = _read(options) if options.record is not None else _run(console, options)
    except onewave.DeviceError as error:
        console.print(f"No GPU: {error}. --device cpu measures the executor.", markup=False)
        return 2
    except (ValueError, OSError, MissingMatplotlib, MissingJinja) as error:
        console.print(str(error), style="red", markup=False)
        return 2
    console.print(summary_table(results))
    if options.plot is not None:
        write_plot(options.plot, results, title_of(header))
    if options.report is not None:
        page = write_report(options.report, header, results)
        console.print(f"wrote {page}", markup=False, highlight=False)
    return 0 if all(_is_good(result) for result in results) else 1


def _read(options: argparse.Namespace) -> tuple[dict[str, Any], list[WorkloadResult]]:
    """Of a record, of which the page gets a copy."""
    if options.workloads is not None or options.systems is not None or options.json is not None:
        raise ValueError("--from measures nothing: it goes without --workloads, --systems and --json")
    record = read_record(options.record)
    if options.report is not None:
        text = options.record.read_bytes()
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / RECORD).write_bytes(text)
    return record.header, record.results


def _run(console: Console, options: argparse.Namespace) -> tuple[dict[str, Any], list[WorkloadResult]]:
    device = resolve_device(options.device)
    workloads, systems = _select(options, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    header = _header(options, device)
    return header, _measure(console, device, workloads, systems, header, options)


def _select(
    options: argparse.Namespace, device: torch.device
) -> tuple[list[Workload], Mapping[str, Prepare]]:
    if options.runs < 1:
        raise ValueError(f"--runs is {options.runs}; it must be 1 or more")
    if options.fa3_library is not None and not options.fa3_library.is_file():
        raise ValueError(f"--fa3-library is {str(options.fa3_library)!r}; there is no such file")
    if options.workloads is not None:
        workloads = select_workloads(options.workloads.split(","))
    elif options.report is not None:
        workloads = report_workloads(device.type)
    else:
        workloads = default_workloads() if device.type == "cuda" else [WORKLOADS[SMOKE]]
    if options.systems is None:
        return workloads, available_systems(device.type, options.fa3_library)
    return workloads, select_systems(options.systems.split(","), options.fa3_library)


def _measure(
    console: Console,
    device: torch.device,
    workloads: list[Workload],
    systems: Mapping[str, Prepare],
    header: dict[str, Any],
    options: argparse.Namespace,
) -> list[WorkloadResult]:
    """Shows and writes each workload when it is done, so that a run that is cut short leaves what it has."""
    records = [options.json] if options.json is not None else []
    records += [options.report / RECORD] if options.report is not None else []
    harness = Harness(device, options.runs, options.seed, is_checked=not options.no_check)
    num_steps = harness.num_steps(len(systems))
    results: list[WorkloadResult] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=num_steps * len(workloads))
        for i, workload in enumerate(workloads):

            def show(step: str, name: str = workload.name) -> None:
                progress.update(task, advance=1, description=f"{name}: {step}")

            try:
                result = harness.measure(workload, systems, show)
            except RuntimeError as error:
                # No memory for the tensors, or a peer broke the device: later workloads fail alike, line by line.
                result = WorkloadResult(workload, [Result(name, failure=one_line(error)) for name in systems])
            results.append(result)
            progress.update(task, completed=(i + 1) * num_steps)
            print_result(console, result)
            for path in records:
                write_json(path, header, results)
    return results


def _header(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    return {
        "commit": options.commit or machine.commit_of_checkout(Path.cwd()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine.describe_machine(device),
        "fa3_library_sha256": machine.digest(options.fa3_library),
        "seed": options.seed,
        "num_runs": options.runs,
        "num_warmups": NUM_WARMUPS,
        "flush_bytes": FLUSH_BYTES if device.type == "cuda" else 0,
    }


def _is_good(result: WorkloadResult) -> bool:
    """Whether onewave, where it was measured, gave a right result."""
    ours = next((entry for entry in result.results if entry.system == OURS), None)
    return ours is None or (ours.is_timed and ours.is_right)
