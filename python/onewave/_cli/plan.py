"""A picture of a plan: the items of every CTA over the time that the planner predicts. Needs no GPU."""

import argparse
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from onewave import _core
from onewave._calibration import read_calibration
from onewave._cli.batch_arguments import add_batch_arguments, workload_of
from onewave._gantt import INCHES_PER_CTA, WIDTH_INCHES, draw_bars
from onewave._matplotlib import MissingMatplotlib, import_pyplot, save
from onewave._plan_records import ctas_of, header_of
from onewave._prediction import KINDS, Bar, predict_bars
from onewave._prefixes import make_prefix_groups, prefix_arguments
from onewave._tensors import Shape
from onewave.bench.tensors import lens_tensors
from onewave.bench.workload import Workload
from onewave.workspace import make_limits


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    add_batch_arguments(parser)
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        default="H200",
        help="whose calibration predicts, such as H100 (default: H200)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="one that `calibrate` wrote, in its place"
    )
    parser.add_argument(
        "--output",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the picture, png, svg or pdf by its suffix; may be given several times (needs matplotlib)",
    )


def run_plan(options: argparse.Namespace) -> int:
    """The exit status: 2 for arguments that are no batch."""
    console = Console()
    try:
        if options.output:
            import_pyplot("--output")
        workload = workload_of(options)
        calibration = (
            read_calibration(options.calibration)
            if options.calibration
            else _core.calibration_of(options.gpu)
        )
        plan = plan_workload(workload, calibration)
        bars = predict_workload(plan, workload, calibration)
        console.print(f"{workload.name}: {workload.describe()}", highlight=False, markup=False)
        console.print(_table(plan, bars, calibration.gpu))
        for path in options.output:
            _draw(path, workload, plan, bars)
            console.print(f"wrote {path}", highlight=False, markup=False)
    except (ValueError, OSError, MissingMatplotlib) as error:
        console.print(f"plan: {error}", style="red", highlight=False, markup=False)
        return 2
    return 0


def _core_shape(workload: Workload) -> _core.AttentionShape:
    return Shape(
        workload.num_qo_heads,
        workload.num_kv_heads,
        workload.head_dim,
        workload.head_dim,
        workload.page_size,
        workload.dtype,
        workload.kv_dtype,
        workload.out_dtype,
    ).to_core()


def costs_of(workload: Workload, calibration: _core.Calibration) -> _core.CostModel:
    return _core.CostModel(_core_shape(workload), calibration)


def plan_workload(workload: Workload, calibration: _core.Calibration) -> bytes:
    qo_indptr, kv_indptr, kv_len_arr = lens_tensors(workload)
    shape = _core_shape(workload)
    limits = make_limits(
        torch.device("cpu"),
        max(len(workload.requests), 1),
        max(workload.total_qo_len, 1),
        max((request.kv_len for request in workload.requests), default=1) or 1,
        workload.num_ctas,
        max_shared_qo_len=workload.total_qo_len if workload.prefix_len > 0 else 0,
    )
    _core.workspace_layout(limits, shape)  # refuses what no kernel is for
    costs = costs_of(workload, calibration)
    addresses = (qo_indptr.data_ptr(), kv_indptr.data_ptr(), kv_len_arr.data_ptr(), 0)
    scale = workload.head_dim**-0.5
    batch_size = len(workload.requests)
    prefix_groups = make_prefix_groups(workload.prefix_groups)
    return _core.plan_batch(
        limits,
        shape,
        workload.causal,
        scale,
        batch_size,
        *addresses,
        costs,
        window_left=workload.window_left,
        logits_soft_cap=workload.logits_soft_cap,
        **prefix_arguments(prefix_groups),
    )


def predict_workload(plan: bytes, workload: Workload, calibration: _core.Calibration) -> list[Bar]:
    """Of a plan that plan_workload() made, by a calibration that need not be the plan's."""
    qo_indptr, _, _ = lens_tensors(workload)
    costs = costs_of(workload, calibration)
    prefix_groups = make_prefix_groups(workload.prefix_groups)
    return predict_bars(plan, _core_shape(workload), costs, qo_indptr, prefix_groups)


def _table(plan: bytes, bars: list[Bar], gpu: str) -> Table:
    header, ctas = header_of(plan), ctas_of(plan)
    table = Table("", "", title="plan", show_header=False)
    ends_us = [cta["predicted_us"] for cta in ctas]
    mean_us = statistics.fmean(ends_us)
    total_us = sum(bar.us for bar in bars)
    table.add_row(
        "CTAs", f"{len(ctas)}, {sum(cta['narrow_begin'] < cta['narrow_end'] for cta in ctas)} begin narrow"
    )
    table.add_row("items", f"{header['num_items']}, {header['num_split_tiles']} tiles are split")
    table.add_row("predicted makespan", f"{max(ends_us):.1f} us on {gpu}")
    table.add_row("max / mean", f"{max(ends_us) / mean_us:.3f}" if bars else "-")
    for kind in KINDS:
        share = sum(bar.us for bar in bars if bar.kind == kind)
        table.add_row(f"of the time {kind}", f"{share / total_us:.1%}" if total_us > 0 else "-")
    return table


def _draw(path: Path, workload: Workload, plan: bytes, bars: list[Bar]) -> None:
    pyplot = import_pyplot("--output")
    ctas = ctas_of(plan)
    figure, axes = pyplot.subplots(
        figsize=(WIDTH_INCHES, 2 + INCHES_PER_CTA * len(ctas)), layout="constrained"
    )
    draw_bars(axes, bars)
    ends_us = [cta["predicted_us"] for cta in ctas]
    mean_us = statistics.fmean(ends_us)
    axes.axvline(mean_us, color="black", linewidth=0.8, linestyle="--", label=f"mean {mean_us:.0f} us")
    axes.set_xlabel("predicted us")
    axes.set_ylabel("CTA")
    ratio = f", max / mean {max(ends_us) / mean_us:.3f}" if bars else ""
    axes.set_title(f"{workload.name}: {workload.describe()}{ratio}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=5)
    save(figure, path)
    pyplot.close(figure)
