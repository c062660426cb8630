"""The kernel against float32 on the GPU: every batch of the acceptance list, every layout, every corner."""

import functools
import itertools
import os
import secrets
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from dense_batch import FP8, DenseBatch, Expected, Heads, Lens
from gpu_checks import MIXED, Outputs, make_attention, plan, run_twice
from onewave.plan_format import Plan

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32_means_float32")]

BATCHES = {
    "prefill_146": [Lens(146, 146)],
    "prefill_67": [Lens(67, 67)],
    "chunked_8190": [Lens(8190, 7939)],
    "decode_77x2048": [Lens(2048, 1, 77)],
    "chunks_2x4099": [Lens(4099, 129, 2)],
    "decode_600_and_verify_5000": [Lens(600, 1, 264), Lens(5000, 3, 128)],
    "decode_1024_and_verify_8192": [Lens(1024, 1, 100), Lens(8192, 17, 8)],
    "verify_766_and_chunk_1024": [Lens(766, 2, 99), Lens(1024, 512)],
    "more_queries_than_keys": [Lens(2, 235), Lens(1, 13353)],
}
RecordProperty = Callable[[str, object], None]


@functools.lru_cache(maxsize=8)
def reference(name: str, heads: Heads, seed: int) -> tuple[DenseBatch, dict[bool, Expected]]:
    """Shared by the page sizes of a batch."""
    batch = DenseBatch(BATCHES[name], heads, torch.bfloat16, seed)
    return batch, {causal: batch.expected(causal) for causal in (False, True)}


# One seed for the page sizes of a batch, or nothing would be shared.
@functools.lru_cache
def batch_seed(name: str, head_dim: int) -> int:
    return int(os.environ.get("ONEWAVE_TEST_SEED", secrets.randbits(31)))


# The first varies fastest: references are kept for one batch and head_dim only.
@pytest.mark.parametrize("page_size", [1, 8, 16, 64])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", BATCHES)
def test_acceptance_batches(
    name: str, head_dim: int, page_size: int, record_property: RecordProperty
) -> None:
    seed = batch_seed(name, head_dim)
    record_property("seed", seed)
    num_cases = 0
    for num_kv_heads, group_size in itertools.product((1, 4), (1, 4, 7, 8)):
        batch, expected = reference(name, Heads(num_kv_heads, group_size, head_dim), seed)
        paged = batch.paged(page_size)
        attention = make_attention(batch)
        outputs = Outputs(batch)
        for causal in (False, True):
            plan(attention, batch, paged, page_size, causal)
            run_twice(attention, outputs, paged)
            try:
                outputs.check(expected[causal])
            except AssertionError as error:
                pytest.fail(f"{num_kv_heads=} {group_size=} {causal=} ONEWAVE_TEST_SEED={seed}: {error}")
            num_cases += 1
    record_property("cases", num_cases)


def check_batch(
    batch: DenseBatch, page_size: int, causal: bool, layout: str = "NHD", num_ctas: int | None = None
) -> None:
    paged = batch.paged(page_size, layout)
    attention = make_attention(batch, "HND" if layout == "HND" else "NHD", num_ctas)
    outputs = Outputs(batch)
    plan(attention, batch, paged, page_size, causal)
    run_twice(attention, outputs, paged)
    outputs.check(batch.expected(causal))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_long_queue(page_size: int, head_dim: int, seed: int) -> None:
    """More wide items, of a tile of keys each, than a CTA has slots for; the second run finds the counter at 0."""
    lens = [Lens(100, 70, 20), Lens(130, 9, 3), Lens(900, 1, 2)]
    for num_ctas in (1, 2, 5):
        check_batch(
            DenseBatch(lens, Heads(2, 4, head_dim), torch.bfloat16, seed), page_size, True, "NHD", num_ctas
        )


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [1, 8, 12, 16, 64, 256])
def test_kv_heads_that_go_together(page_size: int, head_dim: int, seed: int) -> None:
    """Every number of kv heads of a step, with 8, 16 and 32 padded rows, whole items and split ones."""
    taken = set()
    lens = [Lens(1 + 331 * i, 1, 3) for i in range(6)] + [Lens(5000, 2), Lens(700, 3, 2), Lens(0, 1)]
    for num_kv_heads, group_size in itertools.product((1, 2, 4, 6, 8, 16), (1, 3, 8)):
        batch = DenseBatch(lens, Heads(num_kv_heads, group_size, head_dim), torch.bfloat16, seed)
        for layout in ("NHD", "HND"):
            check_batch(batch, page_size, True, layout, num_ctas=12)
        attention = make_attention(batch, num_ctas=12)
        plan(attention, batch, batch.paged(page_size), page_size, True)
        items = Plan(attention.plan_bytes()).items
        taken |= {(int(item["heads_per_step"]), bool(item["split_tile"] >= 0)) for item in items}
    assert taken == set(itertools.product((1, 2, 4, 8), (False, True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [1, 3, 5, 8, 16, 48, 128, 256])
def test_page_sizes(dtype: torch.dtype, head_dim: int, page_size: int, seed: int) -> None:
    batch = DenseBatch(MIXED, Heads(2, 4, head_dim), dtype, seed)
    for causal in (False, True):
        check_batch(batch, page_size, causal)


@pytest.mark.parametrize("layout", ["HND", "pair", "strided"])
@pytest.mark.parametrize("page_size", [1, 5, 16, 64])
def test_layouts(layout: str, page_size: int, seed: int) -> None:
    for head_dim, num_kv_heads in itertools.product((64, 128), (1, 4)):
        batch = DenseBatch(MIXED, Heads(num_kv_heads, 4, head_dim), torch.bfloat16, seed)
        check_batch(batch, page_size, True, layout)


@pytest.mark.parametrize("group_size", [2, 3, 5, 16, 20, 64])
def test_group_sizes(group_size: int, seed: int) -> None:
    for head_dim, page_size in itertools.product((64, 128), (1, 16)):
        batch = DenseBatch(MIXED, Heads(2, group_size, head_dim), torch.bfloat16, seed)
        check_batch(batch, page_size, True)


@pytest.mark.parametrize("num_ctas", [1, 2, 33, 100])
def test_num_ctas(num_ctas: int, seed: int) -> None:
    batch = DenseBatch(MIXED, Heads(4, 7, 128), torch.bfloat16, seed)
    for page_size in (1, 16):
        check_batch(batch, page_size, True, num_ctas=num_ctas)


@pytest.mark.parametrize("lens", [[Lens(131072, 1)], [Lens(100003, 5), Lens(17, 1, 40)], [Lens(40000, 70)]])
def test_long_requests_are_split(lens: list[Lens], seed: int) -> None:
    for head_dim, page_size in itertools.product((64, 128), (1, 16)):
        batch = DenseBatch(lens, Heads(1, 8, head_dim), torch.bfloat16, seed)
        check_batch(batch, page_size, True)


@pytest.mark.parametrize(
    "heads", [Heads(1, 4, 64), Heads(1, 4, 96), Heads(1, 4, 128), Heads(1, 4, 192), Heads(1, 4, 256)]
)
def test_fp8_means_of_many_keys(heads: Heads, seed: int) -> None:
    """Where all values are 1 so are the outputs, however many keys there are: the tensor cores' own sums of e4m3 cut off
    what is small beside them, and were 5 % too small after 4096 keys (bench/NOTES.md). On two CTAs, or each has few."""
    batch = DenseBatch([Lens(32768, 256)], heads, FP8, seed, kv_dtype=FP8)
    batch.v[0].copy_(torch.ones_like(batch.v[0], dtype=torch.float32))
    paged = batch.paged(16)
    attention = make_attention(batch, num_ctas=2)
    outputs = Outputs(batch)
    plan(attention, batch, paged, 16, causal=True)
    run_twice(attention, outputs, paged)
    out = outputs.out[: outputs.num_rows].float()
    assert out.mean().item() == pytest.approx(1.0, abs=2.5e-3)
    assert (out - 1).abs().max().item() <= 2**-6


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_fp8_rows_of_equal_scores(head_dim: int, seed: int) -> None:
    """Rounding moves all weights of such a row alike, by up to a sixteenth, and the row is divided by their sum. Where all
    values are 1 it is 1."""
    batch = DenseBatch([Lens(4096, 256), Lens(300, 70, 3)], Heads(1, 4, head_dim), FP8, seed, kv_dtype=FP8)
    for v in batch.v:
        v.copy_(torch.ones_like(v, dtype=torch.float32))
    paged = batch.paged(16)
    attention = make_attention(batch, num_ctas=2)
    outputs = Outputs(batch)
    plan(attention, batch, paged, 16, causal=True)
    for q_scale in (0.0001, 0.01, 0.03, 0.1):
        run_twice(attention, outputs, paged, q_scale=q_scale)
        error = (outputs.out[: outputs.num_rows].float() - 1).abs().max().item()
        assert error <= torch.finfo(torch.bfloat16).eps, q_scale


@pytest.mark.parametrize("kv_len", [0, 1, 127, 128, 129, 256])
def test_lengths_around_a_tile(kv_len: int, seed: int) -> None:
    lens = [Lens(kv_len, qo_len) for qo_len in (0, 1, 2, 15, 16, 17, 63, 64, 65, 128, 129)]
    batch = DenseBatch(lens, Heads(1, 2, 128), torch.bfloat16, seed)
    for page_size, causal in itertools.product((1, 16), (False, True)):
        check_batch(batch, page_size, causal)


def test_batch_with_nothing_to_do(seed: int) -> None:
    check_batch(DenseBatch([Lens(0, 0, 3)], Heads(2, 4, 128), torch.bfloat16, seed), 16, True)
    check_batch(DenseBatch([Lens(50, 0, 3)], Heads(2, 4, 64), torch.bfloat16, seed), 1, True)


@pytest.mark.parametrize("on_device", [False, True])
def test_scales(on_device: bool, seed: int) -> None:
    k_scale, v_scale = 0.37, 1.9
    batch = DenseBatch(MIXED, Heads(2, 4, 128), torch.bfloat16, seed)
    expected = batch.expected(True, k_scale, v_scale)
    scales: dict[str, float | torch.Tensor] = {"k_scale": k_scale, "v_scale": v_scale}
    if on_device:
        scales = {
            name: torch.tensor(value, dtype=torch.float32, device="cuda") for name, value in scales.items()
        }
    for page_size in (1, 16):
        paged = batch.paged(page_size)
        attention = make_attention(batch)
        outputs = Outputs(batch)
        plan(attention, batch, paged, page_size, True)
        run_twice(attention, outputs, paged, **scales)
        outputs.check(expected)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_index_tensors_may_live_on_either_side(where: str, seed: int) -> None:
    batch = DenseBatch(MIXED, Heads(2, 4, 128), torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    attention.plan(
        *(
            tensor.to(where)
            for tensor in (paged.qo_indptr, paged.kv_indptr, paged.kv_indices, paged.kv_len_arr)
        ),
        batch.heads.num_qo_heads,
        batch.heads.num_kv_heads,
        batch.heads.head_dim,
        batch.heads.head_dim,
        16,
        causal=True,
    )
    outputs = Outputs(batch)
    run_twice(attention, outputs, paged)
    outputs.check(batch.expected(True))


def test_the_page_table_is_kept_alive(seed: int) -> None:
    """Its memory is not given to another tensor while the plan uses it, though the caller has dropped it."""
    batch = DenseBatch(MIXED, Heads(2, 4, 128), torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    plan(attention, batch, replace(paged, kv_indices=paged.kv_indices.clone()), 16, True)
    others = [torch.zeros_like(paged.kv_indices) for _ in range(8)]
    outputs = Outputs(batch)
    run_twice(attention, outputs, paged)
    outputs.check(batch.expected(True))
    del others


def test_outputs_are_allocated_when_not_given(seed: int) -> None:
    batch = DenseBatch(MIXED, Heads(2, 4, 128), torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    plan(attention, batch, paged, 16, True)
    out, lse = attention.run(batch.q, paged.kv_cache)
    outputs = Outputs(batch, num_extra_rows=0)
    outputs.out, outputs.lse = out, lse
    outputs.check(batch.expected(True))


def test_strided_queries_and_outputs(seed: int) -> None:
    """Queries as the first part of a fused projection, outputs as every other head of a wider tensor."""
    batch = DenseBatch(MIXED, Heads(2, 4, 64), torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    plan(attention, batch, paged, 16, True)
    outputs = Outputs(batch)
    num_rows, num_heads, head_dim = outputs.q.shape
    fused = torch.full((num_rows, 2 * num_heads, head_dim), float("nan"), dtype=batch.dtype, device="cuda")
    fused[:, :num_heads] = outputs.q
    outputs.q = fused[:, :num_heads]
    wide = torch.full_like(fused, 3.0)
    outputs.out = wide[:, ::2]
    outputs.poison()
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    outputs.check(batch.expected(True))
    assert bool((wide[:, 1::2] == 3.0).all())


def test_plans_do_not_wait_for_runs(seed: int) -> None:
    """More steps enqueued at once than the ring has buffers, each right."""
    batches = [
        DenseBatch([Lens(3000 + 100 * i, 1 + i, 8)], Heads(2, 4, 128), torch.bfloat16, seed) for i in range(9)
    ]
    attention = make_attention(batches[-1])
    paged = [batch.paged(16) for batch in batches]
    outputs = [Outputs(batch) for batch in batches]
    for i, batch in enumerate(batches):
        plan(attention, batch, paged[i], 16, True)
        attention.run(outputs[i].q, paged[i].kv_cache, out=outputs[i].out, lse=outputs[i].lse)
    for i, batch in enumerate(batches):
        outputs[i].check(batch.expected(True))


@pytest.mark.parametrize("page_size", [1, 16])
def test_graph_replays_for_later_batches(page_size: int, seed: int) -> None:
    """Captured on one batch; replayed for batches of other lengths, page tables, mask and number of requests."""
    heads = Heads(2, 4, 128)
    lens = [[Lens(500, 1, 4)], MIXED, [Lens(300, 300), Lens(20000, 1)], [Lens(0, 0)], [Lens(500, 1, 4)]]
    batches = [DenseBatch(group, heads, torch.bfloat16, seed + i) for i, group in enumerate(lens)]
    paged = [batch.paged(page_size) for batch in batches]
    largest = max(batches, key=lambda batch: batch.total_qo_len)
    static = Outputs(largest)
    num_pages = max(one.kv_cache.shape[0] for one in paged if isinstance(one.kv_cache, torch.Tensor))
    cache = torch.empty((num_pages, 2, page_size, 2, 128), dtype=torch.bfloat16, device="cuda")
    attention = make_attention(DenseBatch([Lens(20000, 100, 16)], heads, torch.bfloat16, seed))

    def load(i: int, causal: bool) -> None:
        plan(attention, batches[i], paged[i], page_size, causal)
        cache.fill_(float("nan"))
        assert isinstance(paged[i].kv_cache, torch.Tensor)
        cache[: paged[i].kv_cache.shape[0]] = paged[i].kv_cache
        static.num_rows = batches[i].total_qo_len
        static.q.fill_(float("nan"))
        static.q[: static.num_rows] = batches[i].q
        static.poison()

    load(0, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.run(static.q, cache, out=static.out, lse=static.lse)
    for i, batch in enumerate(batches):
        for causal in (True, False):
            load(i, causal)
            graph.replay()
            static.check(batch.expected(causal))
