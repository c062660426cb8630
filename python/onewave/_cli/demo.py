"""A serving step, planned, run and checked against a plain computation in higher precision."""

import math
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import onewave
from onewave import _core
from onewave._cli.step import cpu_step, gpu_step
from onewave._plan_records import ctas_of, header_of
from onewave.bench.ceilings import device_ceilings
from onewave.bench.reference import MAX_RELATIVE_ERROR, reference_attention, relative_error
from onewave.bench.tensors import BatchTensors, make_tensors
from onewave.bench.timing import GpuStopwatch
from onewave.bench.workload import Workload

# Absolute, in units of log2.
MAX_LSE_ERROR = 1e-3
NUM_RUNS = 20
CAPTION = "narrow items read keys for up to 32 rows of queries, wide ones multiply 128 rows; each CTA has an SM of its own"


def run_demo(device: str | None, seed: int) -> int:
    """The exit status: 1 for a wrong result, 2 for a device that cannot be used."""
    console = Console()
    try:
        attention = onewave.BatchAttention(device=device or "cuda")
    except onewave.DeviceError as error:
        console.print(f"No GPU: {error}", markup=False)
        if device is not None:
            return 2
        console.print("The CPU executor runs a smaller step, by the plan that a GPU of 132 SMs would get.")
        attention = onewave.BatchAttention(device="cpu")
        device = "cpu"
    device = device or "cuda"
    step = gpu_step(seed) if device == "cuda" else cpu_step(seed)
    tensors = make_tensors(step, device, seed, unused=math.nan)
    console.print(_describe(step))
    plan_us = _median_us(lambda: _plan(attention, tensors))
    out = torch.full_like(tensors.q, torch.nan)
    lse = torch.full(tensors.q.shape[:2], torch.nan, device=device)
    attention.run(tensors.q, tensors.kv_cache, out=out, lse=lse)
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    console.print(_plan_table(attention.plan_bytes(), plan_us, _core.calibration_of(gpu).gpu))
    out_error, lse_error = _errors(tensors, out, lse)
    is_right = out_error <= MAX_RELATIVE_ERROR and lse_error <= MAX_LSE_ERROR
    if device == "cuda":
        run_us = _time_on_gpu(attention, tensors, out, lse)
    else:
        run_us = _median_us(lambda: attention.run(tensors.q, tensors.kv_cache, out=out, lse=lse), num_runs=3)
    console.print(_result_table(step, device, out_error, lse_error, run_us))
    console.print("[green]The result is right.[/]" if is_right else "[red]The result is WRONG.[/]")
    return 0 if is_right else 1


def _describe(step: Workload) -> str:
    num_decodes = sum(request.qo_len == 1 for request in step.requests)
    chunk = step.requests[-1]
    return (
        f"{num_decodes} decodes on {sum(r.kv_len for r in step.requests[:-1])} keys and a chunk of {chunk.qo_len} "
        f"queries on {chunk.kv_len}; {step.num_qo_heads}/{step.num_kv_heads} heads, head_dim {step.head_dim}, "
        f"page {step.page_size}, {str(step.dtype).removeprefix('torch.')}, causal"
    )


def _plan(attention: onewave.BatchAttention, tensors: BatchTensors) -> None:
    step = tensors.workload
    attention.plan(
        tensors.qo_indptr,
        tensors.kv_indptr,
        tensors.kv_indices,
        tensors.kv_len_arr,
        step.num_qo_heads,
        step.num_kv_heads,
        step.head_dim,
        step.head_dim,
        step.page_size,
        causal=True,
        q_data_type=step.dtype,
        kv_data_type=step.kv_dtype,
    )


def _median_us(action: Callable[[], object], num_runs: int = NUM_RUNS) -> float:
    """Of the host's clock."""
    times = []
    for _ in range(num_runs):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def _time_on_gpu(
    attention: onewave.BatchAttention, tensors: BatchTensors, out: torch.Tensor, lse: torch.Tensor
) -> float:
    """Median microseconds of a launch with nothing of the step in L2."""
    stopwatch = GpuStopwatch(out.device)
    times: list[float] = []
    for _ in range(NUM_RUNS):
        elapsed_us = stopwatch.issue(lambda: attention.run(tensors.q, tensors.kv_cache, out=out, lse=lse))
        stopwatch.synchronize()
        times.append(elapsed_us())
    return statistics.median(times)


def _errors(tensors: BatchTensors, out: torch.Tensor, lse: torch.Tensor) -> tuple[float, float]:
    """Relative Frobenius error of out and the largest of lse; NaN in a result makes its error infinite."""
    precision = torch.float64 if out.device.type == "cpu" else torch.float32
    expected_out, expected_lse = reference_attention(tensors, precision)
    lse_error = (lse.to(precision) - expected_lse).abs().max()
    return relative_error(out, expected_out), lse_error.nan_to_num(torch.inf).item()


def _plan_table(plan: bytes, plan_us: float, gpu: str) -> Table:
    """`gpu`: whose costs it was planned with."""
    header, ctas = header_of(plan), ctas_of(plan)
    predicted_us = [cta["predicted_us"] for cta in ctas]
    makespan_us, mean_us = max(predicted_us), statistics.fmean(predicted_us)
    table = Table("", "", title="plan", show_header=False, caption=CAPTION)
    table.add_row("CTAs", f"{len(ctas)}")
    num_narrow = header["wide_begin"]
    table.add_row("items", f"{num_narrow} narrow, {header['num_items'] - num_narrow} wide")
    table.add_row("tiles split over several items", f"{header['num_split_tiles']}")
    table.add_row("predicted makespan", f"{makespan_us:.1f} us on {gpu}")
    table.add_row("predicted makespan over mean", f"{makespan_us / mean_us:.3f}")
    table.add_row("bytes", f"{header['num_bytes']}")
    table.add_row("time of plan()", _duration(plan_us))
    return table


def _result_table(step: Workload, device: str, out_error: float, lse_error: float, run_us: float) -> Table:
    table = Table("", "", title="run", show_header=False)
    table.add_row("device", torch.cuda.get_device_name() if device == "cuda" else "cpu")
    against = "float32" if device == "cuda" else "float64"
    table.add_row("relative error of out", f"{out_error:.5f} against {against}, at most {MAX_RELATIVE_ERROR}")
    table.add_row("largest error of lse", f"{lse_error:.1e}, at most {MAX_LSE_ERROR}")
    table.add_row("time", _duration(run_us))
    if device == "cuda":
        table.add_row("memory", f"{step.num_bytes / run_us * 1e-3:.0f} GB/s")
        table.add_row("arithmetic", f"{step.num_flop / run_us * 1e-6:.0f} TFLOP/s")
        floor_us = step.floor_us(device_ceilings(torch.device(device)))
        table.add_row("share of the floor", f"{floor_us / run_us:.2f} of {floor_us:.0f} us")
    return table


def _duration(us: float) -> str:
    return f"{us:.1f} us" if us < 10_000 else f"{us * 1e-3:.1f} ms"
