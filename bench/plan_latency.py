"""What a plan costs the host: the planner alone, by each calibration of the library, and plan() as an engine calls it.

    python3 bench/plan_latency.py --output bench/results/plan_latency_cpu.json

Without a GPU plan() is that of device="cpu", whose page table is on the host: its ids are checked and copied, which is
shown apart. On a GPU lengths are on the host and the page table on the device; the time is until plan() returns, on an
idle device, the upload enqueued.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onewave
import torch
from onewave import _core
from onewave.bench.tensors import lens_tensors
from onewave.bench.workload import Request, Workload
from rich.console import Console
from rich.table import Table

BATCHES = {
    "1 x (8192, 1)": (Request(8192, 1),),
    "128 x (8192, 1)": (Request(8192, 1),) * 128,
    "128 x (8192, 1) + (8192, 2048)": (*(Request(8192, 1),) * 128, Request(8192, 2048)),
    "1024 x (1000.., 1)": tuple(Request(1000 + 7 * i, 1) for i in range(1024)),
    "1 x (8192, 8192)": (Request(8192, 8192),),
}


def time_us(call: Callable[[], object], num_runs: int) -> float:
    """Median, after a few to warm up."""
    times = []
    for _ in range(num_runs + 10):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e6)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return round(statistics.median(times[10:]), 1)


def measure(requests: tuple[Request, ...], device: str, num_runs: int) -> dict[str, Any]:
    workload = Workload("batch", requests)
    lens = lens_tensors(workload)
    qo_indptr, kv_indptr, kv_len_arr = lens
    kv_indices = torch.arange(int(kv_indptr[-1]), dtype=torch.int32, device=device)
    attention = onewave.BatchAttention(device=device, max_kv_len=1 << 17)
    shape = (
        workload.num_qo_heads,
        workload.num_kv_heads,
        workload.head_dim,
        workload.head_dim,
        workload.page_size,
    )
    limits = _core.PlanLimits(2048, 65536, 1 << 17, 132)
    core_shape = _core.AttentionShape(*shape, _core.DType.BFLOAT16)
    addresses = [tensor.data_ptr() for tensor in lens]
    all_costs = {
        calibration.gpu: _core.CostModel(core_shape, calibration) for calibration in _core.calibrations()
    }

    def plan_core(costs: _core.CostModel) -> bytes:
        return _core.plan_batch(limits, core_shape, True, 0.1, len(requests), *addresses, 0, costs)

    def plan() -> None:
        attention.plan(qo_indptr, kv_indptr, kv_indices, kv_len_arr, *shape, causal=True)

    def handle_page_table() -> None:
        kv_indices.aminmax()
        kv_indices.clone()

    return {
        "planner_us": {gpu: time_us(partial(plan_core, costs), num_runs) for gpu, costs in all_costs.items()},
        "plan_us": time_us(plan, num_runs),
        "host_page_table_us": None if device == "cuda" else time_us(handle_page_table, num_runs),
        "plan_bytes": {gpu: len(plan_core(costs)) for gpu, costs in all_costs.items()},
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, help="the JSON record")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--runs", type=int, default=300)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    rows = {name: measure(requests, device, options.runs) for name, requests in BATCHES.items()}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": options.commit,
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "batches": rows,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    table = Table(
        "batch", "planner us", "plan() us", "of it host page table us", "bytes", title=record["processor"]
    )
    for name, row in rows.items():
        values = (value.values() if isinstance(value, dict) else [value] for value in row.values())
        table.add_row(name, *(", ".join(map(str, each)) for each in values))
    Console().print(table)


if __name__ == "__main__":
    main()
