"""Random steps under one CUDA graph, for minutes: what drifts, if anything does. Needs a GPU.

    python3 bench/soak.py --minutes 8 --output bench/results/soak_h100.json

A step is a batch of random requests within the limits (decodes, verifications, chunks, requests without queries or keys),
planned while the step before it still runs, its page table by CSR or as a block table at another address each time; half
of those with a block table are planned from upper bounds, and the lengths read on the device, inside the graph.
Every 50th step is compared with float32. Every 500th is a batch that is always the same: its time and the bits of its
result, and what the device has free beside what torch keeps for its tensors. The exit status is 1 where a step is
wrong, bits or memory differ, or the time of the last tenth of those is more than 3 % from that of the first.
"""

import argparse
import hashlib
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import onewave
import torch
from onewave.bench import machine
from onewave.bench.reference import MAX_RELATIVE_ERROR, reference_attention, relative_error
from onewave.bench.tensors import BatchTensors, lens_tensors
from onewave.bench.timing import GpuStopwatch
from onewave.bench.workload import Request, Workload
from rich.progress import Progress

MAX_BATCH_SIZE, MAX_TOTAL_QO_LEN, MAX_KV_LEN, CACHE_TOKENS = 128, 4096, 32768, 640_000
CHECK_EVERY, PROBE_EVERY = 50, 500
PROBE = (*(Request(3000 + 100 * i, 1) for i in range(40)), Request(6000, 700))


class Soak:
    """The tensors that the graph has baked in, and the steps that it is replayed for."""

    def __init__(self, seed: int, page_size: int) -> None:
        self.draw = random.Random(seed)
        self.page_size = page_size
        self.num_pages = CACHE_TOKENS // page_size
        shape = (self.num_pages, 2, page_size, 8, 128)
        self.kv_cache = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        self.q = torch.randn(MAX_TOTAL_QO_LEN, 32, 128, dtype=torch.bfloat16, device="cuda")
        self.out = torch.empty_like(self.q)
        self.lse = torch.empty(self.q.shape[:2], dtype=torch.float32, device="cuda")
        self.attention = onewave.BatchAttention(
            max_batch_size=MAX_BATCH_SIZE, max_total_qo_len=MAX_TOTAL_QO_LEN, max_kv_len=MAX_KV_LEN
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def requests(self) -> tuple[Request, ...]:
        draw = self.draw
        requests: list[Request] = []
        num_rows, num_pages = 0, 0
        for _ in range(draw.randint(0, MAX_BATCH_SIZE)):
            kv_len = min(int(draw.lognormvariate(0, 1.2) * 1500), MAX_KV_LEN)
            kind = draw.random()
            qo_len = 1 if kind < 0.8 else draw.randint(0, 8) if kind < 0.95 else draw.randint(9, 1500)
            pages = math.ceil(kv_len / self.page_size)
            if num_rows + qo_len <= MAX_TOTAL_QO_LEN and num_pages + pages <= self.num_pages:
                requests.append(Request(kv_len, qo_len))
                num_rows, num_pages = num_rows + qo_len, num_pages + pages
        return tuple(requests)

    def plan(self, requests: tuple[Request, ...], as_block_table: bool) -> BatchTensors:
        workload = Workload("soak", requests, page_size=self.page_size)
        lens = qo_indptr, kv_indptr, kv_len_arr = lens_tensors(workload)
        generator = torch.Generator("cuda").manual_seed(self.draw.getrandbits(31))
        page_ids = torch.randperm(self.num_pages, generator=generator, device="cuda", dtype=torch.int32)
        kv_indices = page_ids[: int(kv_indptr[-1])]
        planned_lens, table, actual = kv_len_arr, None, None
        if as_block_table and requests:
            if self.draw.random() < 0.5:
                actual = kv_len_arr.cuda()
                more = torch.tensor([self.draw.randint(0, 3000) for _ in requests], dtype=torch.int32)
                planned_lens = (kv_len_arr + more).clamp(max=MAX_KV_LEN)
            # No pages for what is above the lengths.
            width = math.ceil(int(planned_lens.max()) / self.page_size) + 1
            table = torch.full((len(requests), width), 1 << 30, dtype=torch.int32, device="cuda")
            table[(torch.arange(width) < kv_indptr.diff()[:, None]).cuda()] = kv_indices
        csr = (None, None) if table is not None else (kv_indptr, kv_indices)
        self.attention.plan(
            *(qo_indptr, *csr, planned_lens, 32, 8, 128, 128, self.page_size),
            causal=True,
            block_table=table,
            actual_kv_len_arr=actual,
        )
        return BatchTensors(workload, *lens, kv_indices, self.q, self.kv_cache)

    def run(self) -> None:
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.attention.update_kv_lens()
                self.attention.run(self.q, self.kv_cache, out=self.out, lse=self.lse)
        self.graph.replay()

    def error(self, step: BatchTensors) -> float:
        expected, _ = reference_attention(step, torch.float32)
        num_rows = int(step.qo_indptr[-1])
        if num_rows == 0:
            return 0.0
        return relative_error(self.out[:num_rows], expected[:num_rows])

    def probe(self, stopwatch: GpuStopwatch) -> dict[str, Any]:
        state, self.draw = self.draw, random.Random(0)
        step = self.plan(PROBE, as_block_table=False)
        self.draw = state
        times = []
        for _ in range(12):
            elapsed = stopwatch.issue(self.run)
            stopwatch.synchronize()
            times.append(elapsed())
        num_rows = int(step.qo_indptr[-1])
        del step
        bits = self.out[:num_rows].view(torch.int16).cpu().numpy().tobytes()
        return {
            "us": statistics.median(times[2:]),
            "bits": hashlib.sha256(bits).hexdigest()[:16],
            "free_bytes": torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(),
            "allocated_bytes": torch.cuda.memory_allocated(),
        }


def soak(seconds: float, page_size: int, seed: int) -> dict[str, Any]:
    state = Soak(seed, page_size)
    stopwatch = GpuStopwatch(torch.device("cuda"))
    state.probe(stopwatch)  # captures
    for i in range(100):  # what CUDA takes for good when a kernel of torch runs for the first time
        step = state.plan(state.requests(), as_block_table=i % 2 == 0)
        state.run()
        state.error(step)
    del step
    probes, errors = [state.probe(stopwatch)], []
    num_steps, begin = 0, time.monotonic()
    with Progress(transient=True) as progress:
        task = progress.add_task(f"page {page_size}", total=seconds)
        step = state.plan(state.requests(), as_block_table=False)
        while time.monotonic() - begin < seconds:
            state.run()
            num_steps += 1
            if num_steps % CHECK_EVERY == 0:
                errors.append(state.error(step))
            if num_steps % PROBE_EVERY == 0:
                del step  # its tensors, of which every step has others
                probes.append(state.probe(stopwatch))
                progress.update(task, completed=time.monotonic() - begin)
            step = state.plan(state.requests(), as_block_table=state.draw.random() < 0.5)
    tenth = max(len(probes) // 10, 1)
    first, last = (statistics.median(p["us"] for p in part) for part in (probes[:tenth], probes[-tenth:]))
    return {
        "page_size": page_size,
        "seconds": round(time.monotonic() - begin, 1),
        "steps": num_steps,
        "checked": len(errors),
        "largest_relative_error": max(errors, default=0.0),
        "probes": len(probes),
        "probe_bits": sorted({probe["bits"] for probe in probes}),
        "probe_us": {"first_tenth": round(first, 2), "last_tenth": round(last, 2)},
        "free_bytes": {"first": probes[0]["free_bytes"], "last": probes[-1]["free_bytes"]},
        "allocated_bytes": {"first": probes[0]["allocated_bytes"], "last": probes[-1]["allocated_bytes"]},
    }


def problems(result: dict[str, Any]) -> list[str]:
    us, free, allocated = result["probe_us"], result["free_bytes"], result["allocated_bytes"]
    drift = us["last_tenth"] / us["first_tenth"] - 1
    found = {
        "a step is wrong": result["largest_relative_error"] > MAX_RELATIVE_ERROR,
        "bits differ": len(result["probe_bits"]) > 1,
        "free memory differs": free["first"] != free["last"],
        "allocated memory differs": allocated["first"] != allocated["last"],
        f"time drifts by {100 * drift:.1f} %": abs(drift) > 0.03,
    }
    return [problem for problem, is_there in found.items() if is_there]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="half of them with page 16, half with page 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--output", required=True, type=Path, help="the JSON record")
    options = parser.parse_args()
    results = [soak(options.minutes * 30, page_size, options.seed) for page_size in (16, 1)]
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": options.commit,
        "machine": machine.describe_machine(torch.device("cuda")),
        "soaks": [result | {"problems": problems(result)} for result in results],
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["soaks"], indent=1))
    if any(map(problems, results)):
        sys.exit(1)


if __name__ == "__main__":
    main()
