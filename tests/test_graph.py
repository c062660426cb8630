"""CUDA graphs of run(): one for every batch, several of several sizes, layers that overlap, and what may not be replayed."""

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Paged
from gpu_checks import MIXED, Outputs, as_block_table, plan

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32_means_float32")]

HEADS = Heads(2, 4, 128)
MAX_BATCH_SIZE, MAX_TOTAL_QO_LEN, MAX_KV_LEN = 64, 600, 5000
# Pages of the one cache, in tokens, and the keys that a batch may have: the rest is for last pages and those of nobody.
CACHE_TOKENS = 100_000
MAX_TOTAL_KV_LEN = CACHE_TOKENS - 2_000


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
            or sum(group.count * group.kv_len for group in lens) > MAX_TOTAL_KV_LEN
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


class GraphedStep:
    """Tensors at fixed addresses, one object, and one graph of its run()."""

    def __init__(self, heads: Heads, page_size: int, seed: int) -> None:
        self.heads, self.page_size = heads, page_size
        largest = DenseBatch([Lens(1, MAX_TOTAL_QO_LEN)], heads, torch.bfloat16, seed)
        self.static = Outputs(largest)
        shape = (CACHE_TOKENS // page_size, 2, page_size, heads.num_kv_heads, heads.head_dim)
        self.cache = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        self.attention = onewave.BatchAttention(
            max_batch_size=MAX_BATCH_SIZE, max_total_qo_len=MAX_TOTAL_QO_LEN, max_kv_len=MAX_KV_LEN
        )
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
                self.attention.run(static.q, self.cache, static.out, static.lse)
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
    paged = batch.paged(16)
    step.attention = onewave.BatchAttention(max_batch_size=32, max_total_qo_len=600, max_kv_len=9000)
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
