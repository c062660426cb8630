"""What an inference engine does with one object for months: one CUDA graph for every batch, no allocation, its own
scales, streams, devices and page tables, caches of any size."""

import gc
import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Paged
from gpu_checks import MIXED, Outputs, make_attention, plan, run_twice

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32_means_float32")]

HEADS = Heads(2, 4, 128)
MAX_BATCH_SIZE, MAX_TOTAL_QO_LEN, MAX_KV_LEN = 64, 600, 5000
# Pages of the one cache, in tokens.
CACHE_TOKENS = 100_000


def random_lens(draw: random.Random) -> list[Lens]:
    """Any mix within the limits, requests without queries, keys or both among them."""
    kinds: list[Callable[[], Lens]] = [
        lambda: Lens(draw.randint(1, MAX_KV_LEN), 1, draw.randint(1, 8)),
        lambda: Lens(draw.randint(1, 2000), draw.randint(2, 8), draw.randint(1, 4)),
        lambda: Lens(draw.randint(200, 3000), draw.randint(9, 200)),
        lambda: Lens(draw.randint(0, 3), draw.randint(0, 40)),
        lambda: Lens(draw.randint(1, 500), 0),
        lambda: Lens(0, 0, draw.randint(1, 10)),
    ]
    lens: list[Lens] = []
    for _ in range(draw.randint(0, 9)):
        lens.append(draw.choice(kinds)())
        batch_size = sum(group.count for group in lens)
        if (
            batch_size > MAX_BATCH_SIZE
            or sum(group.count * group.qo_len for group in lens) > MAX_TOTAL_QO_LEN
        ):
            lens.pop()
    return lens


def batches_of_a_graph(draw: random.Random, count: int) -> Iterator[list[Lens]]:
    yield [Lens(1, 1)]
    yield []
    yield [Lens(40, 1, MAX_BATCH_SIZE)]
    yield [Lens(MAX_KV_LEN, MAX_TOTAL_QO_LEN)]
    for _ in range(count):
        yield random_lens(draw)


def as_block_table(paged: Paged) -> torch.Tensor:
    """On the device, rows longer than any request and further apart than they are long; unused entries are wild."""
    num_pages = paged.kv_indptr.diff()
    width = max(int(num_pages.max()), 1) + 3 if len(num_pages) else 1
    table = torch.full((len(num_pages) + 1, width + 5), 1 << 30, dtype=torch.int32, device="cuda")[:, :width]
    for request, ids in enumerate(paged.kv_indices.split(num_pages.tolist())):
        table[request, : len(ids)] = ids
    return table


class GraphedStep:
    """Tensors at fixed addresses, one object, and one graph of its run()."""

    def __init__(self, heads: Heads, page_size: int, seed: int, **run_options: Any) -> None:
        self.heads, self.page_size = heads, page_size
        largest = DenseBatch([Lens(1, MAX_TOTAL_QO_LEN)], heads, torch.bfloat16, seed)
        self.static = Outputs(largest)
        shape = (CACHE_TOKENS // page_size, 2, page_size, heads.num_kv_heads, heads.head_dim)
        self.cache = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        self.attention = onewave.BatchAttention(
            max_batch_size=MAX_BATCH_SIZE, max_total_qo_len=MAX_TOTAL_QO_LEN, max_kv_len=MAX_KV_LEN
        )
        self.run_options = run_options
        self.graph: torch.cuda.CUDAGraph | None = None

    def plan(self, batch: DenseBatch, paged: Paged, causal: bool, by_block_table: bool) -> None:
        heads = self.heads
        if by_block_table:
            csr: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
            table = {"block_table": as_block_table(paged)}
        else:
            csr, table = (paged.kv_indptr, paged.kv_indices), {}
        self.attention.plan(
            paged.qo_indptr,
            *csr,
            paged.kv_len_arr,
            *(heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, heads.head_dim),
            self.page_size,
            causal=causal,
            **table,
        )

    def load(self, batch: DenseBatch, paged: Paged) -> None:
        assert isinstance(paged.kv_cache, torch.Tensor)
        self.cache.fill_(math.nan)
        self.cache[: paged.kv_cache.shape[0]] = paged.kv_cache
        self.static.num_rows = batch.total_qo_len
        self.static.q.fill_(math.nan)
        self.static.q[: batch.total_qo_len] = batch.q
        self.static.poison()

    def run(self) -> None:
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            static = self.static
            with torch.cuda.graph(self.graph):
                self.attention.run(static.q, self.cache, static.out, static.lse, **self.run_options)
        self.graph.replay()


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_one_graph_for_every_batch(head_dim: int, page_size: int, seed: int) -> None:
    """Each step's plan is made while the step before it still runs."""
    draw = random.Random(seed)
    heads = Heads(2, 4, head_dim)
    step = GraphedStep(heads, page_size, seed)
    steps = []
    for i, lens in enumerate(batches_of_a_graph(draw, 300)):
        batch = DenseBatch(lens, heads, torch.bfloat16, seed + i)
        steps.append((batch, batch.paged(page_size), draw.random() < 0.8, draw.random() < 0.3))
    step.plan(*steps[0])
    for i, (batch, paged, causal, _) in enumerate(steps):
        step.load(batch, paged)
        step.run()
        if i + 1 < len(steps):
            step.plan(*steps[i + 1])
        try:
            step.static.check(batch.expected(causal))
        except AssertionError as error:
            pytest.fail(f"step {i} {batch.lens=} {causal=} ONEWAVE_TEST_SEED={seed}: {error}")


def test_graphs_of_several_sizes(seed: int) -> None:
    """As an engine captures them, one object for all, the smallest last."""
    attention = onewave.BatchAttention(max_batch_size=64, max_total_qo_len=64, max_kv_len=1000)
    graphs = {}
    for num_rows in (64, 16, 4):
        batch = DenseBatch([Lens(900, 1, num_rows)], HEADS, torch.bfloat16, seed)
        paged, outputs = batch.paged(16), Outputs(batch, num_extra_rows=0)
        plan(attention, batch, paged, 16, True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
        graphs[num_rows] = (batch, paged, outputs, graph)
    for batch, paged, outputs, graph in graphs.values():
        plan(attention, batch, paged, 16, True)
        outputs.poison()
        graph.replay()
        outputs.check(batch.expected(True))


def replay_a_graph_of_too_few_rows() -> None:
    """The kernel stops, and with it the process's GPU context, before anything behind `out` is written."""
    attention = onewave.BatchAttention(max_batch_size=64, max_total_qo_len=64, max_kv_len=1000)
    small, large = (DenseBatch([Lens(900, 1, count)], HEADS, torch.bfloat16, 1) for count in (4, 16))
    for batch in (large, small):
        paged, outputs = batch.paged(16), Outputs(batch, num_extra_rows=0)
        plan(attention, batch, paged, 16, True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    plan(attention, large, large.paged(16), 16, True)
    graph.replay()
    with pytest.raises(RuntimeError, match="CUDA error|launch failure|illegal instruction"):
        torch.cuda.synchronize()


def test_a_graph_of_too_few_rows_stops(elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(replay_a_graph_of_too_few_rows).result(timeout=120)


def test_a_batch_beyond_the_limits_leaves_the_plan(seed: int) -> None:
    step = GraphedStep(HEADS, 16, seed)
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = replace(batch.paged(16))
    limits = onewave.BatchAttention(max_batch_size=32, max_total_qo_len=600, max_kv_len=9000)
    step.attention = limits
    step.plan(batch, paged, True, False)
    step.load(batch, paged)
    step.run()
    too_much = {
        "batch_size is 33": [Lens(5, 1, 33)],
        "601.*max_total_qo_len": [Lens(700, 601)],
        "9001.*max_kv_len": [Lens(9001, 1)],
    }
    for message, lens in too_much.items():
        beyond = DenseBatch(lens, HEADS, torch.bfloat16, seed)
        with pytest.raises(ValueError, match=message):
            step.plan(beyond, beyond.paged(16), True, False)
    step.static.poison()
    step.run()
    step.static.check(batch.expected(True))


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_graph_of_programmatic_dependent_launches(page_size: int, seed: int) -> None:
    """Layers in a row, each of which may begin while the one before it ends: they share the workspace."""
    batches = [DenseBatch(lens, HEADS, torch.bfloat16, seed) for lens in (MIXED, [Lens(5000, 1, 3)])]
    step = GraphedStep(HEADS, page_size, seed)
    step.attention = onewave.BatchAttention(max_batch_size=64, max_total_qo_len=600, max_kv_len=9000)
    static = step.static
    layers = [(torch.empty_like(static.out), torch.empty_like(static.lse)) for _ in range(6)]
    graph = None
    for batch in batches:
        paged = batch.paged(page_size)
        step.plan(batch, paged, True, False)
        step.load(batch, paged)
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for out, lse in layers:
                    step.attention.run(static.q, step.cache, out, lse, enable_pdl=True)
        for _ in range(20):
            graph.replay()
        for out, lse in layers:
            static.poison()
            for target, source in ((static.out, out), (static.lse, lse)):
                target[: batch.total_qo_len] = source[: batch.total_qo_len]
            static.check(batch.expected(True))


def test_steps_allocate_nothing_on_either_side(seed: int) -> None:
    """After the first of a shape, by torch's counters of device and of pinned host memory, and by the driver's."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    outputs = Outputs(batch)

    def step() -> None:
        plan(attention, batch, paged, 16, True)
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)

    def counters() -> tuple[int, dict[str, int], int]:
        torch.cuda.synchronize()
        on_device = torch.cuda.memory_stats()["allocation.all.allocated"]
        pinned = torch.cuda.host_memory_stats()
        counts = {name: count for name, count in pinned.items() if "time" not in name}
        return on_device, counts, torch.cuda.mem_get_info()[0]

    before_pinned = counters()
    torch.empty(1 << 20, pin_memory=True)
    assert counters()[1] != before_pinned[1], "the counter of pinned memory counts nothing"

    for _ in range(3):
        step()
    gc.collect()
    before = counters()
    for _ in range(50):
        step()
    assert counters() == before


def test_all_memory_is_the_callers_or_the_workspace(seed: int) -> None:
    """What an object takes of the device beside the workspace that it was given: the module of its kernel."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(16)
    outputs = Outputs(batch)
    workspace = torch.empty(
        onewave.workspace_size(
            num_qo_heads=HEADS.num_qo_heads,
            num_kv_heads=HEADS.num_kv_heads,
            head_dim=HEADS.head_dim,
            page_size=16,
        ),
        dtype=torch.uint8,
        device="cuda",
    )
    assert workspace.numel() < 64 << 20
    attention = onewave.BatchAttention(workspace=workspace)
    before = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    plan(attention, batch, paged, 16, True)
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    assert torch.cuda.memory_stats()["allocated_bytes.all.current"] == before
    outputs.check(batch.expected(True))


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_block_table_in_place(page_size: int, seed: int) -> None:
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(page_size)
    tables = [as_block_table(paged)]
    table = tables[0].cpu()
    table[table == 1 << 30] = -1
    for block_table in (tables[0], table):
        attention = make_attention(batch)
        attention.plan(
            paged.qo_indptr,
            None,
            None,
            paged.kv_len_arr,
            *(HEADS.num_qo_heads, HEADS.num_kv_heads, HEADS.head_dim, HEADS.head_dim),
            page_size,
            causal=True,
            block_table=block_table,
        )
        outputs = Outputs(batch)
        run_twice(attention, outputs, paged)
        outputs.check(batch.expected(True))


# Lengths, and what they are planned as: splits that no key is left for, narrow and wide, whole requests without keys.
BOUNDED = {
    "mixed": (MIXED, [9000, 3000, 5000, 33, 700, 50, 4000]),
    "few keys of many": (
        [Lens(300, 1, 2), Lens(90, 70), Lens(0, 3), Lens(0, 60)],
        [60000, 40000, 30000, 20000],
    ),
    "as planned": (MIXED, [group.kv_len for group in MIXED]),
    "nothing": ([Lens(0, 1, 5), Lens(0, 200)], [4000, 9000]),
}


@pytest.mark.parametrize("split_policy", ["balanced", "fixed"])
@pytest.mark.parametrize("page_size", [8, 16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", BOUNDED)
def test_lengths_that_are_known_when_it_runs(
    name: str, head_dim: int, page_size: int, split_policy: str, seed: int
) -> None:
    """Planned from bounds; the page table holds no pages for what is above the lengths. Then the same plan runs, in a
    graph, with other lengths in the same tensor."""
    lens, bounds = BOUNDED[name]
    heads = Heads(4, 4, head_dim)
    batch = DenseBatch(lens, heads, torch.bfloat16, seed)
    paged = batch.paged(page_size)
    bound_of_request = [bound for group, bound in zip(lens, bounds, strict=True) for _ in range(group.count)]
    table = torch.full((len(bound_of_request), -(-max(bounds) // page_size)), 1 << 30, dtype=torch.int32)
    known = as_block_table(paged)[: len(table)]
    table = table.cuda()
    table[:, : known.shape[1]] = known[:, : table.shape[1]]
    actual = paged.kv_len_arr.cuda()
    attention = onewave.BatchAttention(
        max_batch_size=64, max_total_qo_len=1024, max_kv_len=60000, split_policy=split_policy
    )
    arguments = (heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, heads.head_dim, page_size)
    for causal in (True, False):
        attention.plan(
            paged.qo_indptr,
            None,
            None,
            torch.tensor(bound_of_request, dtype=torch.int32),
            *arguments,
            causal=causal,
            block_table=table,
            actual_kv_len_arr=actual,
        )
        outputs = Outputs(batch)
        run_twice(attention, outputs, paged)
        outputs.check(batch.expected(causal))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            attention.run(outputs.q, paged.kv_cache, outputs.out, outputs.lse)
        shorter = [replace_keys(batch, kept) for kept in (0.5, 0.0)]
        for other in shorter:
            actual.copy_(other.paged(page_size).kv_len_arr)
            outputs.poison()
            graph.replay()
            outputs.check(other.expected(causal))
        actual.copy_(paged.kv_len_arr)


def test_lengths_of_gathered_pages_are_known_when_it_is_planned(seed: int) -> None:
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(1)
    attention = make_attention(batch)
    arguments = (HEADS.num_qo_heads, HEADS.num_kv_heads, HEADS.head_dim, HEADS.head_dim, 1)
    csr = (paged.qo_indptr, paged.kv_indptr, paged.kv_indices, paged.kv_len_arr)
    with pytest.raises(
        ValueError, match="actual_kv_len_arr is given; it must be null with pages of 1 tokens"
    ):
        attention.plan(*csr, *arguments, actual_kv_len_arr=paged.kv_len_arr.cuda())


def replace_keys(batch: DenseBatch, kept: float) -> DenseBatch:
    """The same queries, and the first part of the keys."""
    lens = [group._replace(kv_len=int(group.kv_len * kept)) for group in batch.lens]
    other = DenseBatch(lens, batch.heads, batch.dtype, 0)
    other.q = batch.q
    other.k = [k[:, : group.kv_len] for k, group in zip(batch.k, lens, strict=True)]
    other.v = [v[:, : group.kv_len] for v, group in zip(batch.v, lens, strict=True)]
    return other


@pytest.mark.parametrize("on_device", [False, True])
def test_a_scale_of_one_run(on_device: bool, seed: int) -> None:
    """In place of the plan's; the reference has it as k_scale."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    scale = 0.37 / math.sqrt(HEADS.head_dim)
    argument = torch.tensor(scale, device="cuda") if on_device else scale
    expected = batch.expected(True, k_scale=0.37)
    for page_size in (1, 16):
        paged = batch.paged(page_size)
        attention = make_attention(batch)
        outputs = Outputs(batch)
        plan(attention, batch, paged, page_size, True)
        run_twice(attention, outputs, paged, sm_scale=argument)
        outputs.check(expected)


def test_lse_may_be_left_out(seed: int) -> None:
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    outputs = Outputs(batch)
    plan(attention, batch, paged, 16, True)
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    alone, nothing = attention.run(outputs.q, paged.kv_cache, return_lse=False)
    assert nothing is None
    assert torch.equal(alone[: batch.total_qo_len], outputs.out[: batch.total_qo_len])


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_cache_of_more_than_2_to_the_32_elements(page_size: int, seed: int) -> None:
    """Pages of the batch all over a cache of 9 GB."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(page_size)
    small = paged.kv_cache
    assert isinstance(small, torch.Tensor)
    num_pages = ((1 << 32) + (1 << 25)) // small[0].numel()
    cache = torch.empty((num_pages, *small.shape[1:]), dtype=small.dtype, device="cuda")
    places = torch.linspace(0, num_pages - 1, small.shape[0], dtype=torch.float64).long().cuda()
    cache[places] = small
    moved = replace(paged, kv_indices=places[paged.kv_indices.long()].to(torch.int32), kv_cache=cache)
    assert int(moved.kv_indices.max()) * small[0].numel() > 1 << 32
    attention = make_attention(batch)
    outputs = Outputs(batch)
    plan(attention, batch, moved, page_size, True)
    run_twice(attention, outputs, moved)
    outputs.check(batch.expected(True))


def test_several_threads_with_an_object_and_a_stream_each(seed: int) -> None:
    batches = [DenseBatch([Lens(500 + 300 * i, 1 + i, 5)], HEADS, torch.bfloat16, seed + i) for i in range(6)]
    expected = [batch.expected(True) for batch in batches]
    torch.cuda.synchronize()

    def serve(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            paged, outputs = batches[i].paged(16), Outputs(batches[i])
            attention = make_attention(batches[i])
            for _ in range(50):
                plan(attention, batches[i], paged, 16, True)
                outputs.poison()
                attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
            outputs.check(expected[i])

    with ThreadPoolExecutor(len(batches)) as pool:
        for served in [pool.submit(serve, i) for i in range(len(batches))]:
            served.result()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_devices_in_one_process(seed: int) -> None:
    """Each on the current stream of its device, whatever the current device is."""
    steps = []
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed + index, device)
        steps.append(
            (batch, batch.paged(16), make_attention(batch), Outputs(batch), torch.cuda.Stream(device))
        )
    torch.cuda.synchronize()
    for _ in range(3):
        for batch, paged, attention, outputs, stream in steps:
            with torch.cuda.stream(stream), torch.cuda.device(0):
                plan(attention, batch, paged, 16, True)
                outputs.poison()
                attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    for batch, _, _, outputs, stream in steps:
        stream.synchronize()
        outputs.check(batch.expected(True))
