"""Shared prefixes on the GPU: against float32, with the pages of one request alone, and in graphs that were captured
without any."""

import math

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Paged
from gpu_checks import Outputs, make_attention, plan, run_twice
from onewave.plan_format import Plan
from plan_checks import prefix_items

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32_means_float32")]

Groups = list[tuple[int, int, int]]

TWO_LEVELS: Groups = [(0, 24, 4096), (0, 8, 6016), (8, 16, 5000)]
PAGE_SIZE = 16


def shared_batch(lens: list[Lens], groups: Groups, heads: Heads, seed: int) -> tuple[DenseBatch, Paged]:
    """All keys of a prefix but those of its first request are NaN in the cache."""
    batch = DenseBatch(lens, heads, torch.bfloat16, seed)
    batch.share(groups)
    paged = batch.paged(PAGE_SIZE)
    assert isinstance(paged.kv_cache, torch.Tensor)
    shares = [request.qo_len * heads.group_size <= 64 for request in batch.requests()]
    for begin, end, num_tokens in groups:
        read = num_tokens // 128 * 128 // PAGE_SIZE
        for request in filter(shares.__getitem__, range(begin + 1, end)):
            first = int(paged.kv_indptr[request])
            paged.kv_cache[paged.kv_indices[first : first + read].long()] = math.nan
    # Where a group lies in another its first request's pages are read.
    for dense, side in ((batch.k, 0), (batch.v, 1)):
        rows = [request for group in dense for request in group]
        for begin, _, num_tokens in groups:
            first = int(paged.kv_indptr[begin])
            for page in range(num_tokens // PAGE_SIZE):
                tokens = rows[begin][page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
                paged.kv_cache[paged.kv_indices[first + page].long(), side] = tokens
    return batch, paged


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("lens", "groups"),
    [
        ([Lens(6500, 1, 24)], TWO_LEVELS),
        ([Lens(6500, 1, 8), Lens(5400, 3, 8), Lens(4200, 1, 8)], TWO_LEVELS),
        ([Lens(9000, 1, 4)], [(0, 4, 8192)]),
        ([Lens(5000, 1, 7), Lens(5000, 200), Lens(5000, 1, 7)], [(0, 15, 4096)]),
        ([Lens(4096, 1, 64)], [(0, 64, 4096)]),
        ([Lens(4099, 4, 8)], [(0, 8, 4096)]),
        ([Lens(4200, 1, 5), Lens(4200, 40), Lens(4200, 1, 5), Lens(4200, 40)], [(0, 12, 4096)]),
    ],
    ids=[
        "two levels",
        "verification",
        "narrow",
        "a prompt between",
        "no own keys",
        "own keys of later queries",
        "short runs",
    ],
)
@pytest.mark.parametrize("heads", [Heads(8, 4, 128), Heads(4, 7, 128), Heads(16, 1, 64)], ids=str)
def test_against_float32(lens: list[Lens], groups: Groups, causal: bool, heads: Heads, seed: int) -> None:
    batch, paged = shared_batch(lens, groups, heads, seed)
    attention = make_attention(batch)
    outputs = Outputs(batch)
    plan(attention, batch, paged, PAGE_SIZE, causal, prefix_groups=groups)
    assert prefix_items(Plan(attention.plan_bytes())).any()
    run_twice(attention, outputs, paged)
    outputs.check(batch.expected(causal))


def test_one_graph_with_and_without_prefixes(seed: int) -> None:
    heads = Heads(8, 4, 128)
    batch = DenseBatch([Lens(6500, 1, 24)], heads, torch.bfloat16, seed)
    batch.share(TWO_LEVELS)
    paged = batch.paged(PAGE_SIZE)
    attention = onewave.BatchAttention(max_batch_size=32, max_total_qo_len=64, max_kv_len=8192)
    outputs = Outputs(batch, 0)
    expected = batch.expected(True)
    plan(attention, batch, paged, PAGE_SIZE, True)
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    for groups in (TWO_LEVELS, [], TWO_LEVELS[:1], TWO_LEVELS):
        plan(attention, batch, paged, PAGE_SIZE, True, prefix_groups=groups)
        assert prefix_items(Plan(attention.plan_bytes())).any() == (len(groups) > 0)
        for _ in range(3):
            outputs.poison()
            graph.replay()
            outputs.check(expected)


def test_lengths_that_turn_out_shorter(seed: int) -> None:
    """Bounds 700 above what each request has; the prefix is theirs all the same."""
    heads, groups = Heads(8, 4, 128), [(0, 24, 4096)]
    batch, paged = shared_batch([Lens(4500, 1, 24)], groups, heads, seed)
    attention = onewave.BatchAttention(max_batch_size=32, max_total_qo_len=64, max_kv_len=8192)
    outputs = Outputs(batch)
    table = torch.zeros(24, math.ceil(5200 / PAGE_SIZE), dtype=torch.int32, device="cuda")
    pages = math.ceil(4500 / PAGE_SIZE)
    table[:, :pages] = paged.kv_indices.view(24, pages)
    attention.plan(
        paged.qo_indptr,
        None,
        None,
        paged.kv_len_arr + 700,
        *(heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, heads.head_dim, PAGE_SIZE),
        causal=True,
        block_table=table,
        actual_kv_len_arr=paged.kv_len_arr.cuda(),
        prefix_groups=groups,
    )
    run_twice(attention, outputs, paged)
    outputs.check(batch.expected(True))
