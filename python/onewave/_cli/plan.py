"""A picture of a plan: the items of every CTA over the time that the planner predicts. Needs no GPU."""

import argparse
import heapq
import json
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from onewave import _core
from onewave._calibration import read_calibration
from onewave._cli.records import ctas_of, header_of, items_of
from onewave._matplotlib import MissingMatplotlib, import_pyplot, save
from onewave._prefixes import make_prefix_groups, prefix_arguments
from onewave._tensors import Shape
from onewave._validate import check_int
from onewave.bench.tensors import lens_tensors
from onewave.bench.workload import Request, Workload
from onewave.bench.workloads import WORKLOADS
from onewave.workspace import make_limits

REQUESTS = re.compile(r"(\d+):(\d+)(?:x(\d+))?")
COLORS = {"narrow": "#1f77b4", "narrow, split": "#9ecae1", "wide": "#d95f02", "wide, split": "#fdbe85"}
INCHES_PER_CTA = 0.06
WIDTH_INCHES = 10


class Bar(NamedTuple):
    """An item in the picture."""

    cta: int
    kind: str  # of COLORS
    begin_us: float
    us: float


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "requests",
        nargs="*",
        metavar="KV_LEN:QO_LEN[xCOUNT]",
        help="requests in tokens, such as 8192:1x128 8192:4096 (128 decodes and a prompt's last half)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="requests as [[kv_len, qo_len], ...]; '-': standard input"
    )
    parser.add_argument("--workload", choices=WORKLOADS, metavar="NAME", help="one of the benchmark's")
    parser.add_argument("--num-qo-heads", type=int, help="default: 32, or the workload's")
    parser.add_argument("--num-kv-heads", type=int, help="default: 8, or the workload's")
    parser.add_argument("--head-dim", type=int, help="64 or 128 (default), or the workload's")
    parser.add_argument("--page-size", type=int, help="tokens (default: 16, or the workload's)")
    parser.add_argument(
        "--full", action="store_true", help="every query sees every key, not only earlier ones"
    )
    parser.add_argument("--num-ctas", type=int, help="CTAs of the wave (default: 132)")
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
        workload = _workload(options)
        calibration = (
            read_calibration(options.calibration)
            if options.calibration
            else _core.calibration_of(options.gpu)
        )
        plan = plan_workload(workload, calibration)
        bars = predict_bars(plan, workload, calibration)
    except (ValueError, OSError, MissingMatplotlib) as error:
        console.print(f"plan: {error}", style="red", highlight=False, markup=False)
        return 2
    console.print(f"{workload.name}: {workload.describe()}", highlight=False, markup=False)
    console.print(_table(plan, bars))
    for path in options.output:
        _draw(path, workload, plan, bars)
        console.print(f"wrote {path}", highlight=False, markup=False)
    return 0


def _workload(options: argparse.Namespace) -> Workload:
    """The batch that the options name, in one of three ways."""
    if sum(map(bool, (options.requests, options.json, options.workload))) != 1:
        raise ValueError("give requests, --json or --workload, one of the three")
    if options.workload:
        workload = WORKLOADS[options.workload]
    else:
        requests = _read_json(options.json) if options.json else _parse(options.requests)
        workload = Workload("batch", tuple(requests))
    given = {
        name: getattr(options, name)
        for name in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size", "num_ctas")
        if getattr(options, name) is not None
    }
    for name, value in given.items():
        check_int(name, value, 1)
    return replace(workload, **given, causal=workload.causal and not options.full)


def _parse(texts: Sequence[str]) -> list[Request]:
    requests = []
    for text in texts:
        match = REQUESTS.fullmatch(text)
        if match is None:
            raise ValueError(f"request {text!r} must be KV_LEN:QO_LEN or KV_LEN:QO_LENxCOUNT, in tokens")
        kv_len, qo_len, count = (int(group or 1) for group in match.groups())
        requests += [_request(kv_len, qo_len)] * count
    return requests


def _read_json(path: Path) -> list[Request]:
    text = sys.stdin.read() if path == Path("-") else path.read_text()
    pairs = json.loads(text)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{path} must hold a list of [kv_len, qo_len]")
    return [_request(*pair) for pair in pairs]


def _request(kv_len: Any, qo_len: Any) -> Request:
    try:
        return Request(check_int("kv_len", kv_len, 0), check_int("qo_len", qo_len, 0))
    except TypeError as error:
        raise ValueError(str(error)) from error


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
        **prefix_arguments(prefix_groups),
    )


def predict_bars(plan: bytes, workload: Workload, calibration: _core.Calibration) -> list[Bar]:
    """Each CTA's narrow items, and the wide ones as the queue gives them out if the calibration is right."""
    header, items = header_of(plan), items_of(plan)
    costs = costs_of(workload, calibration)
    qo_indptr, _, _ = lens_tensors(workload)
    prefix_groups = make_prefix_groups(workload.prefix_groups)
    item_us = _core.predict_items(
        plan,
        _core_shape(workload),
        len(workload.requests),
        qo_indptr.data_ptr(),
        costs,
        **prefix_arguments(prefix_groups),
    )

    def kind(i: int) -> str:
        name = "narrow" if i < header["wide_begin"] else "wide"
        return f"{name}, split" if items[i]["split_tile"] >= 0 else name

    bars = []
    ends_us = []
    for index, cta in enumerate(ctas_of(plan)):
        end_us = costs.launch_us
        for i in range(cta["narrow_begin"], cta["narrow_end"]):
            bars.append(Bar(index, kind(i), end_us, item_us[i]))
            end_us += item_us[i]
        ends_us.append((end_us, index))
    heapq.heapify(ends_us)
    for i in range(header["wide_begin"], header["num_items"]):
        end_us, index = ends_us[0]
        bars.append(Bar(index, kind(i), end_us, item_us[i]))
        heapq.heapreplace(ends_us, (end_us + item_us[i], index))
    return bars


def _table(plan: bytes, bars: list[Bar]) -> Table:
    header, ctas = header_of(plan), ctas_of(plan)
    table = Table("", "", title="plan", show_header=False)
    ends_us = [cta["predicted_us"] for cta in ctas]
    mean_us = statistics.fmean(ends_us)
    total_us = sum(bar.us for bar in bars)
    table.add_row(
        "CTAs", f"{len(ctas)}, {sum(cta['narrow_begin'] < cta['narrow_end'] for cta in ctas)} begin narrow"
    )
    table.add_row("items", f"{header['num_items']}, {header['num_split_tiles']} tiles are split")
    table.add_row("predicted makespan", f"{max(ends_us):.1f} us")
    table.add_row("max / mean", f"{max(ends_us) / mean_us:.3f}" if bars else "-")
    for kind in COLORS:
        share = sum(bar.us for bar in bars if bar.kind == kind)
        table.add_row(f"of the time {kind}", f"{share / total_us:.1%}" if total_us > 0 else "-")
    return table


def _draw(path: Path, workload: Workload, plan: bytes, bars: list[Bar]) -> None:
    pyplot = import_pyplot("--output")
    ctas = ctas_of(plan)
    figure, axes = pyplot.subplots(
        figsize=(WIDTH_INCHES, 2 + INCHES_PER_CTA * len(ctas)), layout="constrained"
    )
    for kind, color in COLORS.items():
        ours = [bar for bar in bars if bar.kind == kind]
        if not ours:
            continue
        axes.barh(
            [bar.cta for bar in ours],
            [bar.us for bar in ours],
            left=[bar.begin_us for bar in ours],
            height=0.9,
            color=color,
            edgecolor="white",
            linewidth=0.2,
            label=kind,
        )
    ends_us = [cta["predicted_us"] for cta in ctas]
    mean_us = statistics.fmean(ends_us)
    axes.axvline(mean_us, color="black", linewidth=0.8, linestyle="--", label=f"mean {mean_us:.0f} us")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("predicted us")
    axes.set_ylabel("CTA")
    ratio = f", max / mean {max(ends_us) / mean_us:.3f}" if bars else ""
    axes.set_title(f"{workload.name}: {workload.describe()}{ratio}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=5)
    save(figure, path)
    pyplot.close(figure)
