"""What the calls of one layer and one step cost, the host until they return and the GPU until they are done. Needs a GPU.

    python3 bench/host_costs.py --output bench/results/host_costs_h100.json

Each call is measured alone: the host's time is that of 20 calls in a row from an idle stream on, as the layers of a
model make them, divided by 20; the GPU's is that of a CUDA graph with 50 such calls, divided by them, with the L2 warm
(for plan(), which no graph takes, there is none). torch.compile's figure is what a compiled function that calls run()
takes beside run().
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onewave
import torch
from onewave.bench import machine
from rich.console import Console
from rich.table import Table

NUM_IN_ROW, NUM_IN_GRAPH = 20, 50
# A step of decodes.
BATCH, KV_LEN, PAGE_SIZE, HEADS, KV_HEADS, HEAD_DIM = 64, 1024, 16, 32, 8, 128

Call = Callable[[], Any]


def host_us(call: Call) -> float:
    times = []
    for _ in range(22):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(NUM_IN_ROW):
            call()
        times.append((time.perf_counter() - begin) / NUM_IN_ROW)
    return statistics.median(times[2:]) * 1e6


def gpu_us(call: Call) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NUM_IN_GRAPH):
            call()
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / NUM_IN_GRAPH)
    return statistics.median(times[2:])


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def calls() -> tuple[dict[str, Call], set[str]]:
    """By name, and the names of those that no graph takes."""
    pages = KV_LEN // PAGE_SIZE
    kv_cache = torch.randn(
        BATCH * pages, 2, PAGE_SIZE, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda"
    )
    q = torch.randn(BATCH, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    out, lse = torch.empty_like(q), torch.empty(BATCH, HEADS, device="cuda")
    qo_indptr = torch.arange(BATCH + 1, dtype=torch.int32)
    kv_indptr = qo_indptr * pages
    kv_lens = torch.full((BATCH,), KV_LEN, dtype=torch.int32)
    kv_indices = torch.randperm(BATCH * pages, device="cuda").int()
    attention = onewave.BatchAttention(max_batch_size=BATCH, max_total_qo_len=BATCH, max_kv_len=KV_LEN)
    bounded = onewave.BatchAttention(max_batch_size=BATCH, max_total_qo_len=BATCH, max_kv_len=KV_LEN)
    arguments = (qo_indptr, kv_indptr, kv_indices, kv_lens, HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM, PAGE_SIZE)
    actual = kv_lens.cuda()

    def plan() -> None:
        attention.plan(*arguments, causal=True)

    def plan_from_bounds() -> None:
        bounded.plan(*arguments, causal=True, actual_kv_len_arr=actual)

    def run() -> None:
        attention.run(q, kv_cache, out=out, lse=lse)

    def run_and_allocate() -> None:
        attention.run(q, kv_cache)

    plan()
    plan_from_bounds()
    compiled = torch.compile(run, fullgraph=True)
    compiled()

    rows = torch.randn(2, BATCH, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    prompt = torch.randn(2, 8192, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    tables = (kv_indices, kv_indptr.cuda(), int32(*[PAGE_SIZE] * BATCH).cuda())
    batch_indices = torch.arange(BATCH, dtype=torch.int32, device="cuda")
    positions = torch.full_like(batch_indices, KV_LEN - 1)
    token = torch.arange(8192, dtype=torch.int32, device="cuda")
    prompt_requests, prompt_positions = token // KV_LEN, token % KV_LEN
    v = torch.randn(BATCH, 4, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    s = torch.randn(BATCH, 4, HEADS, device="cuda")
    v_long = torch.randn(4096, 2, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    s_long = torch.randn(4096, 2, HEADS, device="cuda")
    merged, merged_lse = torch.empty_like(q), torch.empty_like(lse)
    long_merged, long_lse = torch.empty_like(v_long[:, 0]), torch.empty_like(s_long[:, 0])
    append = onewave.append_paged_kv_cache
    named: dict[str, Call] = {
        "plan": plan,
        "plan from upper bounds": plan_from_bounds,
        "update_kv_lens": bounded.update_kv_lens,
        "run": run,
        "run, out and lse allocated": run_and_allocate,
        "run, compiled": compiled,
        f"append_paged_kv_cache, {BATCH} rows": lambda: append(
            rows[0], rows[1], batch_indices, positions, kv_cache, *tables
        ),
        "append_paged_kv_cache, 8192 rows": lambda: append(
            prompt[0], prompt[1], prompt_requests, prompt_positions, kv_cache, *tables
        ),
        f"merge_states, {BATCH} tokens of 4 states": lambda: onewave.merge_states(
            v, s, out=merged, lse=merged_lse
        ),
        "merge_states, 4096 tokens of 2 states": lambda: onewave.merge_states(
            v_long, s_long, out=long_merged, lse=long_lse
        ),
    }
    return named, {"plan", "plan from upper bounds", "run, compiled"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--output", required=True, type=Path, help="the JSON record")
    options = parser.parse_args()
    named, not_in_graphs = calls()
    rows = {
        name: {
            "host_us": round(host_us(call), 2),
            "gpu_us": None if name in not_in_graphs else round(gpu_us(call), 2),
        }
        for name, call in named.items()
    }
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": options.commit,
        "machine": machine.describe_machine(torch.device("cuda")),
        "batch": f"{BATCH} x ({KV_LEN}, 1), {HEADS}/{KV_HEADS} heads, head_dim {HEAD_DIM}, page {PAGE_SIZE}",
        "calls": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    table = Table("call", "host us", "GPU us")
    for name, row in rows.items():
        table.add_row(name, f"{row['host_us']}", "" if row["gpu_us"] is None else f"{row['gpu_us']}")
    Console().print(table)


if __name__ == "__main__":
    main()
