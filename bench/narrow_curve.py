"""How much the narrow kind draws, by page size, packed rows and CTAs: what the planner's cost model lives on.

    python3 bench/narrow_curve.py --commit "$(git rev-parse HEAD)" --output bench/results/narrow_curve_h100.json

Each point is a batch of decodes (or short verifications) of 8192 keys, 8 kv heads, head_dim 128, on as many CTAs, long
enough that the start does not count; GB/s are of K and V and q and out, the median of the runs, with a cold L2.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from onewave.bench.system import Onewave
from onewave.bench.tensors import make_tensors
from onewave.bench.timing import GpuStopwatch
from onewave.bench.workload import Request, Workload
from rich.console import Console
from rich.progress import track
from rich.table import Table

KV_LEN = 8192
NUM_KV_HEADS = 8
# (heads of a group, queries): packed rows of an item. 64 are wide items.
ROWS = {4: (4, 1), 8: (8, 1), 16: (4, 4), 32: (8, 4), 64: (8, 8)}


def workload(page_size: int, rows: int, num_ctas: int) -> Workload:
    group_size, qo_len = ROWS[rows]
    # Two requests for every three CTAs: 22 MB for each.
    requests = (Request(KV_LEN, qo_len),) * max(2 * num_ctas // 3, 1)
    return Workload(
        f"curve_p{page_size}_r{rows}_c{num_ctas}",
        requests,
        num_qo_heads=NUM_KV_HEADS * group_size,
        num_kv_heads=NUM_KV_HEADS,
        page_size=page_size,
        num_ctas=num_ctas,
    )


def measure(point: Workload, num_runs: int, stopwatch: GpuStopwatch) -> list[float]:
    tensors = make_tensors(point, "cuda", seed=1)
    system = Onewave(tensors)
    system.plan()
    times = [stopwatch.issue(system.run) for _ in range(num_runs + 2)]
    stopwatch.synchronize()
    return [round(elapsed(), 1) for elapsed in times[2:]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", required=True)
    parser.add_argument("--build", default="release", help="what is measured, where it is not the release")
    parser.add_argument(
        "--output", required=True, type=Path, help="the JSON record; a record there is added to"
    )
    parser.add_argument("--pages", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--ctas", type=int, nargs="+", default=[16, 33, 44, 66, 88, 132])
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def show(points: list[dict[str, Any]], ctas: list[int]) -> None:
    table = Table("build", "page", "rows", *(f"{count} CTAs" for count in ctas), title="GB/s for each CTA")
    keys = dict.fromkeys((point["build"], point["page_size"], point["rows"]) for point in points)
    for build, page_size, rows in keys:
        found = {
            point["num_ctas"]: point["gb_per_s_per_cta"]
            for point in points
            if (point["build"], point["page_size"], point["rows"]) == (build, page_size, rows)
        }
        table.add_row(build, str(page_size), str(rows), *(f"{found.get(count, 0):.1f}" for count in ctas))
    Console().print(table)


def main() -> None:
    options = parse_args()
    stopwatch = GpuStopwatch(torch.device("cuda"))
    wanted = [(p, r, c) for p in options.pages for r in options.rows for c in options.ctas]
    record = json.loads(options.output.read_text()) if options.output.exists() else {"points": []}
    record |= {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "commit": options.commit,
        "kv_len": KV_LEN,
        "num_kv_heads": NUM_KV_HEADS,
        "head_dim": 128,
    }
    for page_size, rows, num_ctas in track(wanted):
        point = workload(page_size, rows, num_ctas)
        times_us = measure(point, options.runs, stopwatch)
        us = statistics.median(times_us)
        record["points"].append(
            {
                "build": options.build,
                "page_size": page_size,
                "rows": rows,
                "num_ctas": num_ctas,
                "num_bytes": point.num_bytes,
                "times_us": times_us,
                "gb_per_s": round(point.num_bytes / us * 1e-3),
                "gb_per_s_per_cta": round(point.num_bytes / us * 1e-3 / num_ctas, 1),
            }
        )
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    show(record["points"], options.ctas)


if __name__ == "__main__":
    main()
