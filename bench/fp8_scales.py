"""What the forms of scales of a cache of fp8 cost.

    python3 bench/fp8_scales.py --commit "$(git rev-parse HEAD)" --output bench/results/fp8_scales_h100.json

The workloads are the benchmark's, with one factor for K and V each, one for each kv head, for each page and kv head, and
for each token and kv head; the medians of the runs, with a cold L2.
"""

import argparse
import functools
import json
import statistics
from pathlib import Path

import torch
from onewave.bench.system import Onewave
from onewave.bench.tensors import make_tensors
from onewave.bench.timing import GpuStopwatch
from onewave.bench.workload import Workload
from onewave.bench.workloads import select_workloads

WORKLOADS = ("decode_uniform_b128_8k_fp8", "decode_b16_4k_fp8", "prefill_1x8k_fp8")


def measure(workload: Workload, num_runs: int, stopwatch: GpuStopwatch) -> dict[str, float]:
    """Microseconds of each form."""
    tensors = make_tensors(workload, "cuda", seed=1)
    system = Onewave(tensors)
    system.plan()
    num_pages, heads = tensors.kv_cache.shape[0], workload.num_kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "one factor": (1,),
        "by head": (heads,),
        "by page": (num_pages, 1, heads),
        "by token": (num_pages, workload.page_size, heads),
    }
    times = {}
    for form, shape in shapes.items():
        scale = torch.rand(shape, device="cuda") + 0.5
        run = functools.partial(system.run, k_scale=scale, v_scale=scale)
        issued = [stopwatch.issue(run) for _ in range(num_runs + 3)]
        stopwatch.synchronize()
        times[form] = round(statistics.median(elapsed() for elapsed in issued[3:]), 1)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", required=True)
    parser.add_argument("--output", required=True, type=Path, help="the JSON record")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    stopwatch = GpuStopwatch(torch.device("cuda"))
    us = {
        workload.name: measure(workload, options.runs, stopwatch) for workload in select_workloads(WORKLOADS)
    }
    record = {"device": torch.cuda.get_device_name(), "commit": options.commit, "us": us}
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(us, indent=1))


if __name__ == "__main__":
    main()
