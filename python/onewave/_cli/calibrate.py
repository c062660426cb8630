"""Measures what work costs on this GPU, for the planner: the numbers of onewave/cost_model.h.

Each number comes from the times of whole runs, with a cold L2. What narrow items draw is measured beside wide ones:
alone they matter to no plan, since then all CTAs stream and the memory is the bound.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import onewave
from onewave._calibration import LOADERS, to_core
from onewave._plan_records import header_of, items_of
from onewave.bench.machine import describe_machine
from onewave.bench.system import Onewave
from onewave.bench.tensors import make_tensors
from onewave.bench.timing import GpuStopwatch
from onewave.bench.workload import Request, Workload
from onewave.workspace import FP8, resolve_device

TILE_KV = 128
WIDE_TILE_Q = 128
KV_LEN = 8192
# A page size of each loader.
PAGE_SIZES = {"tma": 16, "gather": 1}
HEAD_DIMS = (64, 128)
# Of an element of Q, and of K and V: 16 bits, a cache of fp8 beside them, and all of it fp8.
BYTES = ((2, 2), (2, 1), (1, 1))
DTYPES = {2: torch.bfloat16, 1: FP8}
# (heads of a group, queries): 4, 16 and 32 packed rows, one of each class.
ROWS = ((4, 1), (4, 4), (8, 4))
# Of a token, side by side in its page, and CTAs for each that streams: the slowest counts. A rate too high has all
# others wait for what streams, one too low costs little.
NUM_KV_HEADS = (8, 4)
NARROW_PARTS = (3, 5)
# Parts of the SMs at which the memory's curve has points.
MEMORY_PARTS = (1 / 4, 1 / 2, 2 / 3, 5 / 6, 1)
# Tried, of wide steps and wide units.
STEP_SLOWDOWNS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
UNIT_SLOWDOWNS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
# What the two bounds of a read meet in: see cost_model.cpp.
POWER = 4
NUM_STAGES = 3 + 4 * len(BYTES) * len(HEAD_DIMS) * len(PAGE_SIZES)


class Kernel(NamedTuple):
    head_dim: int
    loader: str
    q_bytes: int
    kv_bytes: int

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Kernel":
        return cls(*(entry[field] for field in cls._fields))

    def describe(self) -> str:
        dtypes = (str(DTYPES[size]).removeprefix("torch.") for size in (self.q_bytes, self.kv_bytes))
        return f"head_dim {self.head_dim}, {self.loader}, {' and '.join(dtypes)}"


class Run(NamedTuple):
    us: float
    plan: bytes

    @property
    def num_narrow_ctas(self) -> int:
        return int(header_of(self.plan)["num_narrow_ctas"])

    def num_narrow_units(self) -> int:
        """Of (request, kv heads of a step), of all narrow items."""
        return sum(
            (item["kv_head_end"] - item["kv_head_begin"]) // item["heads_per_step"]
            for item in items_of(self.plan)[: header_of(self.plan)["wide_begin"]]
        )

    def wide_work(self) -> tuple[int, int]:
        """Units of (tile, kv head), and steps of 128 keys, of all wide items."""
        units = steps = 0
        for item in items_of(self.plan)[header_of(self.plan)["wide_begin"] :]:
            heads = item["kv_head_end"] - item["kv_head_begin"]
            units += heads
            steps += heads * -(-(item["kv_end"] - item["kv_begin"]) // TILE_KV)
        return units, steps


class Bench:
    """Times batches, planned by the calibration as far as it is known."""

    def __init__(self, device: torch.device, num_runs: int) -> None:
        self.device = device
        self.gpu = torch.cuda.get_device_name(device)
        self.num_ctas = torch.cuda.get_device_properties(device).multi_processor_count
        self.points: list[str] = []  # every run, for the record
        self._stopwatch = GpuStopwatch(device)
        self._num_runs = num_runs

    def run(self, workload: Workload, calibration: dict[str, Any]) -> Run:
        with _written(calibration) as file:
            system = Onewave(make_tensors(workload, str(self.device), seed=1), file)
            system.plan()
        times = [self._stopwatch.issue(system.run) for _ in range(self._num_runs + 2)]
        self._stopwatch.synchronize()
        run = Run(statistics.median(time() for time in times[2:]), system.plan_bytes())
        self.points.append(f"{run.us:.2f} us, {run.num_narrow_ctas} CTAs begin narrow: {workload.describe()}")
        return run


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON to write")
    parser.add_argument("--runs", type=int, default=10, help="of each batch (default: %(default)s)")


def run_calibrate(options: argparse.Namespace) -> int:
    """The exit status: 2 where there is no GPU to measure."""
    console = Console()
    try:
        device = resolve_device("cuda")
    except onewave.DeviceError as error:
        console.print(f"calibrate: {error}", style="red", highlight=False, markup=False)
        return 2
    record = calibrate(Bench(device, options.runs), console)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"wrote {options.output}", highlight=False, markup=False)
    return 0


def calibrate(bench: Bench, console: Console) -> dict[str, Any]:
    """The calibration; it grows number by number, and each is measured with those before it."""
    record = _first_guess(bench.gpu, bench.num_ctas)
    with _progress(console) as step:
        step("launch")
        record["launch_us"] = _measure_launch(bench, record)
        step("memory")
        record["memory"] = _measure_memory(bench, record)
        for entry in record["kernels"]:
            kernel = Kernel.of(entry)
            name = kernel.describe()
            step(f"{name}: wide items")
            entry |= _measure_wide(bench, record, kernel)
            step(f"{name}: narrow items")
            entry["narrow_unit_us"] = _measure_narrow_unit(bench, record, kernel)
            step(f"{name}: narrow beside wide")
            entry["narrow_gb_per_s"] = [_measure_narrow(bench, record, entry, rows) for rows in ROWS]
            step(f"{name}: wide beside narrow")
            entry |= _measure_slowdowns(bench, record, entry)
        step("splits")
        record |= _measure_splits(bench, record)
    record["measured"] = {
        "date": time.strftime("%Y-%m-%d"),
        "onewave": onewave.__version__,
        "machine": describe_machine(bench.device),
        "runs": bench.points,
    }
    return record


def _first_guess(gpu: str, num_ctas: int) -> dict[str, Any]:
    """Where a number is not measured yet: only what a plan needs to be a plan."""
    kernels = [
        {
            "head_dim": head_dim,
            "loader": loader,
            "q_bytes": q_bytes,
            "kv_bytes": kv_bytes,
            "wide_step_us": 1.5,
            "wide_unit_us": 3.0,
            "wide_slowdown": 0.5,
            "wide_unit_slowdown": 1.0,
            "narrow_unit_us": 1.0,
            "narrow_gb_per_s": [60.0] * len(ROWS),
        }
        for q_bytes, kv_bytes in BYTES
        for head_dim in HEAD_DIMS
        for loader in LOADERS
    ]
    return {
        "gpu": gpu,
        "launch_us": 8.0,
        "split_us": 1.0,
        "partial_gb_per_s": 85.0,
        "memory": [{"num_ctas": num_ctas, "gb_per_s": 4000.0}],
        "kernels": kernels,
    }


def _measure_launch(bench: Bench, record: dict[str, Any]) -> float:
    """One item of one step: what is left when that is taken away."""
    us = bench.run(Workload("launch", (Request(TILE_KV, 1),), num_kv_heads=1, num_qo_heads=4), record).us
    return round(us - float(record["kernels"][-1]["narrow_unit_us"]), 2)


def _measure_memory(bench: Bench, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Decodes on so many CTAs and nothing else, less what one CTA's own bound takes."""

    def rate(num_ctas: int) -> float:
        decodes = (Request(KV_LEN, 1),) * max(2 * num_ctas // 3, 1)
        workload = Workload("memory", decodes, num_ctas=num_ctas)
        us = bench.run(workload, record).us - float(record["launch_us"])
        return workload.num_bytes / us * 1e-3

    few = max(bench.num_ctas // 8, 1)
    cta_gb_per_s = rate(few) / few
    points = []
    for part in MEMORY_PARTS:
        num_ctas = round(bench.num_ctas * part)
        both = rate(num_ctas)
        points.append({"num_ctas": num_ctas, "gb_per_s": round(_other_bound(both, cta_gb_per_s * num_ctas))})
    return points


def _both_bounds(one: float, other: float) -> float:
    return float((one**-POWER + other**-POWER) ** (-1 / POWER))


def _other_bound(both: float, one: float) -> float:
    """Of two bounds of a rate, the one that is not known; three times the rate where it does not show."""
    least = both * (1 - 3**-POWER) ** (-1 / POWER)
    return float((both**-POWER - max(one, least) ** -POWER) ** (-1 / POWER))


def _shape(kernel: Kernel, group_size: int = 4, num_kv_heads: int = 8) -> Workload:
    return Workload(
        "shape",
        (),
        num_qo_heads=group_size * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=kernel.head_dim,
        page_size=PAGE_SIZES[kernel.loader],
        dtype=DTYPES[kernel.q_bytes],
        kv_dtype=DTYPES[kernel.kv_bytes],
    )


def _num_as_long(kernel: Kernel) -> int:
    """Keys that take as many bytes as one of head_dim 128 and 16 bits."""
    return 128 // kernel.head_dim * 2 // kernel.kv_bytes


def _measure_wide(bench: Bench, record: dict[str, Any], kernel: Kernel) -> dict[str, float]:
    """Two causal batches, whose units of every length balance the CTAs to the end: few long units and many short."""
    long = replace(_shape(kernel), requests=(Request(KV_LEN, KV_LEN),))
    short = replace(_shape(kernel), requests=(Request(KV_LEN // 4, KV_LEN // 4),) * 8)
    rows = []
    for workload in (long, short):
        run = bench.run(workload, record)
        units, steps = run.wide_work()
        rows.append((units, steps, (run.us - record["launch_us"]) * bench.num_ctas))
    (units_a, steps_a, us_a), (units_b, steps_b, us_b) = rows
    determinant = units_a * steps_b - units_b * steps_a
    return {
        "wide_step_us": round((units_a * us_b - units_b * us_a) / determinant, 3),
        "wide_unit_us": round(max((us_a * steps_b - us_b * steps_a) / determinant, 0.1), 2),
    }


def _measure_narrow_unit(bench: Bench, record: dict[str, Any], kernel: Kernel) -> float:
    """The same keys in requests of four steps and of sixteen."""
    shape = _shape(kernel)
    num_long = 4 * bench.num_ctas
    many, few = (
        bench.run(replace(shape, requests=(Request(kv_len, 1),) * count), record)
        for count, kv_len in ((4 * num_long, 4 * TILE_KV), (num_long, 16 * TILE_KV))
    )
    more_us = (many.us - few.us) * bench.num_ctas
    return round(max(more_us / (many.num_narrow_units() - few.num_narrow_units()), 0.1), 2)


def _measure_narrow(
    bench: Bench, record: dict[str, Any], entry: dict[str, Any], rows: tuple[int, int]
) -> float:
    """The least that one CTA draws while the others multiply."""

    def rate(num_kv_heads: int, num_ctas: int) -> float:
        # A first rate tells how much work the others need to be at it nearly as long.
        found = _measure_narrow_beside(bench, record, entry, rows, num_kv_heads, num_ctas, 60.0, 0.6)
        return _measure_narrow_beside(bench, record, entry, rows, num_kv_heads, num_ctas, found, 0.85)

    return min(
        rate(num_kv_heads, bench.num_ctas // part) for num_kv_heads in NUM_KV_HEADS for part in NARROW_PARTS
    )


def _measure_narrow_beside(
    bench: Bench,
    record: dict[str, Any],
    entry: dict[str, Any],
    rows: tuple[int, int],
    num_kv_heads: int,
    num_ctas: int,
    cta_gb_per_s: float,
    wide_part: float,
) -> float:
    """`num_ctas` CTAs stream, and are done last; the others multiply for `wide_part` of the time that `cta_gb_per_s`
    lets expect."""
    group_size, qo_len = rows
    kernel = Kernel.of(entry)
    shape = _shape(kernel, group_size, num_kv_heads)
    decodes = (Request(KV_LEN, qo_len),) * (32 * _num_as_long(kernel) * 8 // num_kv_heads)
    narrow = replace(shape, requests=decodes)
    # Rates with which the planner takes that many, and the work that the others do meanwhile.
    drawn = _both_bounds(to_core(record).memory_gb_per_s(num_ctas), num_ctas * cta_gb_per_s)
    steps = (
        wide_part
        * narrow.num_bytes
        / drawn
        * 1e-3
        * (bench.num_ctas - num_ctas)
        / (1.25 * entry["wide_step_us"])
    )
    tiles = max(round(steps / (KV_LEN // TILE_KV) / num_kv_heads), 1)
    prompt = Request(KV_LEN, max(tiles * WIDE_TILE_Q // group_size, 2 * WIDE_TILE_Q))
    forced = record | {
        "memory": [{"num_ctas": num_ctas, "gb_per_s": 1e6}, {"num_ctas": num_ctas + 1, "gb_per_s": 1.0}],
        "kernels": [
            entry | {"wide_slowdown": 0.0, "wide_unit_slowdown": 0.0, "narrow_gb_per_s": [60.0] * len(ROWS)}
        ],
    }
    run = bench.run(replace(shape, requests=(*decodes, prompt)), forced)
    rate = narrow.num_bytes / (run.us - record["launch_us"]) * 1e-3
    memory = to_core(record).memory_gb_per_s(run.num_narrow_ctas)
    return round(_other_bound(rate, memory) / run.num_narrow_ctas, 1)


def _measure_slowdowns(bench: Bench, record: dict[str, Any], entry: dict[str, Any]) -> dict[str, float]:
    """Batches of which a third of the CTAs stream, beside wide work in long units, and such of short units."""
    part = 128 // entry["head_dim"]
    # Fewer queries, and the memory is the bound, whatever the number. Half of the batches have decodes of all lengths:
    # how units of one length divide among the CTAs moves a batch by up to 9 %.
    long = [
        (*(Request(kv_len, 1) for kv_len in _lens(n * part, octaves)), Request(KV_LEN, 64 * n))
        for n in (40, 56, 72, 88)
        for octaves in (0, 2)
    ]
    short = [
        (Request(KV_LEN // 8, 1),) * (n * part) + (Request(qo_len, qo_len),)
        for n, qo_len in ((16, 128), (24, 256), (32, 512))
    ]
    losses = _losses(bench, record, entry, "wide_slowdown", STEP_SLOWDOWNS, long)
    if losses:
        entry = entry | {"wide_slowdown": _least_good(STEP_SLOWDOWNS, losses, tolerance=0.005)}
    losses = _losses(bench, record, entry, "wide_unit_slowdown", UNIT_SLOWDOWNS, short)
    if losses:
        entry = entry | {"wide_unit_slowdown": _least_good(UNIT_SLOWDOWNS, losses, tolerance=0.005)}
    return {name: entry[name] for name in ("wide_slowdown", "wide_unit_slowdown")}


def _losses(
    bench: Bench,
    record: dict[str, Any],
    entry: dict[str, Any],
    name: str,
    candidates: Sequence[float],
    batches: Sequence[tuple[Request, ...]],
) -> list[float]:
    """Of each candidate for the number: by what part its plans are slower than the fastest, on average; nothing where
    it makes no difference. What a wide step takes beside streams can't be told from a run's time: CTAs that wait for
    the last one hide in it."""
    shape = _shape(Kernel.of(entry))
    losses = []
    nums_narrow_ctas = []
    for requests in batches:
        workload = replace(shape, requests=requests)
        runs = [bench.run(workload, record | {"kernels": [entry | {name: c}]}) for c in candidates]
        least_us = min(run.us for run in runs)
        losses.append([run.us / least_us - 1 for run in runs])
        nums_narrow_ctas.append({run.num_narrow_ctas for run in runs})
    if all(len(nums) == 1 for nums in nums_narrow_ctas):
        return []
    return [statistics.mean(of_one) for of_one in zip(*losses, strict=True)]


def _lens(count: int, octaves: int) -> list[int]:
    """Evenly spread on a logarithmic scale around KV_LEN."""
    return [round(KV_LEN * 2 ** (octaves * ((i + 0.5) / count - 0.5))) for i in range(count)]


def _least_good(candidates: Sequence[float], losses: Sequence[float], tolerance: float) -> float:
    """Too many streaming CTAs cost less than too few, so the least slowdown that is nearly as good as the best."""
    return next(c for c, loss in zip(candidates, losses, strict=True) if loss <= min(losses) + tolerance)


def _measure_splits(bench: Bench, record: dict[str, Any]) -> dict[str, float]:
    """As many units as CTAs, and five for every four of the same work, of which most boundaries between CTAs cut one:
    narrow ones, on so few CTAs that the memory does not hide what cuts cost, and the wide ones of one request, whose
    keys come from the L2."""
    kernel = Kernel(128, "tma", 2, 2)
    entry = next(k for k in record["kernels"] if Kernel.of(k) == kernel)
    shape = replace(_shape(kernel, num_kv_heads=1), causal=False)
    tile_tokens = WIDE_TILE_Q // 4
    # By costs with which the planner takes cuts for nothing.
    kernels = [k | {"wide_unit_us": 0.1, "narrow_unit_us": 0.1} for k in record["kernels"]]
    eager = record | {"split_us": 0.0, "partial_gb_per_s": 1e6, "kernels": kernels}
    num_ctas = bench.num_ctas // 4
    short, long = KV_LEN // 4, KV_LEN * 5 // 16
    narrow = [(Request(short, 1),) * (num_ctas * 5 // 4), (Request(long, 1),) * num_ctas]
    wide = [
        (Request(short, bench.num_ctas * 5 // 4 * tile_tokens),),
        (Request(long, bench.num_ctas * tile_tokens),),
    ]
    piece_us = []
    for batches, ctas, unit_us in (
        (narrow, num_ctas, entry["narrow_unit_us"]),
        (wide, None, entry["wide_unit_us"]),
    ):
        cut, whole = (
            bench.run(replace(shape, requests=requests, num_ctas=ctas), eager) for requests in batches
        )
        # The CTA that is done last has a unit's start more, and two pieces.
        piece_us.append(max((cut.us - whole.us - unit_us) / 2, 0.1))
    narrow_us, wide_us = piece_us
    partial_bytes = 2 * WIDE_TILE_Q * kernel.head_dim * 4
    rate = partial_bytes / max(wide_us - narrow_us, 0.1) * 1e-3
    return {"split_us": round(narrow_us, 2), "partial_gb_per_s": round(rate, 1)}


@contextmanager
def _written(calibration: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calibration.json"
        file.write_text(json.dumps(calibration))
        yield file


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=NUM_STAGES, completed=-1)
        yield lambda description: progress.update(task, description=description, advance=1)
        progress.update(task, advance=1)
