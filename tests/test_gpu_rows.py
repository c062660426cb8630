"""append_paged_kv_cache() and the merges on the GPU: against the CPU's, in CUDA graphs, in caches beyond 2^32 elements,
and with the attention between them."""

import functools
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import onewave
import pytest
import torch
from appends import (
    FP8,
    LAYOUTS,
    SCALES,
    SKIPPED,
    Append,
    Cache,
    hard_elements,
    int32,
    random_append,
    skipping_append,
)
from dense_batch import DenseBatch, Expected, Heads, Lens
from gpu_checks import MAX_RELATIVE_ERROR, check_lse, make_attention
from merges import merged, random_states, states_of_parts
from reference import Reference, check_against

pytestmark = pytest.mark.gpu

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_append(append: Append) -> None:
    """The same bits as on the CPU, and the same elements left alone."""
    on_gpu = append.to("cuda")
    append.run()
    on_gpu.run()
    on_gpu.check(append.cache.memory)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 3, 16, 64, 300])
def test_rows_land_in_their_pages(page_size: int, layout: str) -> None:
    old_lens, new_lens = [0, 35, 7, 200, 16], [9, 1, 0, 130, 16]
    for num_kv_heads, head_dim in ((1, 64), (8, 128), (3, 80)):
        check_append(
            random_append(
                old_lens,
                new_lens,
                1,
                page_size=page_size,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                layout=layout,
                num_padding_rows=5,
            )
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_head_dims(dtype: torch.dtype) -> None:
    for head_dim in (8, 64, 96, 128, 256, 576):
        check_append(random_append([5, 0, 90], [1, 33, 7], 2, dtype=dtype, head_dim=head_dim))
    for head_dim, head_dim_vo in ((192, 128), (8, 24)):
        dims = {"head_dim": head_dim, "head_dim_vo": head_dim_vo}
        check_append(random_append([5, 0, 90], [1, 33, 7], 2, dtype=dtype, layout="pair", **dims))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_quantised_to_fp8(dtype: torch.dtype, scales: str) -> None:
    for page_size in (1, 16, 5):
        for layout in LAYOUTS:
            check_append(
                random_append(
                    *([5, 0, 90], [1, 33, 700], 2),
                    dtype=dtype,
                    kv_dtype=FP8,
                    page_size=page_size,
                    layout=layout,
                    head_dim=128,
                    num_padding_rows=3,
                    scales=scales,
                )
            )
    for head_dim, head_dim_vo in ((16, 16), (192, 128), (80, 576)):
        check_append(
            random_append(
                *([5, 0, 90], [1, 33, 7], 3),
                dtype=dtype,
                kv_dtype=FP8,
                layout="pair",
                head_dim=head_dim,
                head_dim_vo=head_dim_vo,
                scales=scales,
            )
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nearest_of_fp8(dtype: torch.dtype) -> None:
    """Ties, what is beyond 448, infinities, subnormal numbers and NaN."""
    hard = hard_elements().to(dtype)
    for scale in (None, 0.5, 0.3, 1e-37, 1e38):
        append = random_append([0], [len(hard)], 1, dtype=dtype, kv_dtype=FP8)
        append = append.with_(append_key=hard, append_value=-hard)
        check_append(replace(append, scales={} if scale is None else {"k_scale": scale, "v_scale": scale}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_fp8_are_copied(layout: str) -> None:
    for page_size in (1, 16, 5):
        check_append(random_append([5, 0, 90], [1, 33, 7], 2, dtype=FP8, page_size=page_size, layout=layout))


def test_a_graph_reads_the_scales_of_its_replay() -> None:
    append = random_append([3], [70], 1, kv_dtype=FP8, scales="a factor for each head").to("cuda")
    append.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        append.run()
    for factor in (1.0, 0.2, 17.0):
        for scale in append.scales.values():
            assert isinstance(scale, torch.Tensor)
            scale.mul_(factor)
        expected = append.expected()
        graph.replay()
        append.check(expected)


@pytest.mark.parametrize("num_rows", [0, 1, 8, 5000])
def test_few_rows_and_many(num_rows: int) -> None:
    check_append(random_append([1000], [num_rows], 3, num_kv_heads=8, head_dim=128))


@pytest.mark.parametrize("name", SKIPPED)
def test_rows_without_a_place_are_skipped(name: str) -> None:
    check_append(skipping_append(name))


def test_batch_indices_and_positions() -> None:
    arguments = int32([0, 3, 3, 8]), int32([10, 20, 5]), 11
    expected = onewave.get_batch_indices_positions(*arguments)
    found = onewave.get_batch_indices_positions(arguments[0].cuda(), arguments[1].cuda(), 11)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.type == "cuda" and torch.equal(ours.cpu(), theirs)


def test_a_cache_beyond_2_32_elements() -> None:
    """Pages 2^30 elements apart, K and V 2^29: 64 bits all the way. The memory between them is not touched."""
    append = random_append([0, 30], [60, 34], 4, page_size=16, num_kv_heads=2, head_dim=64)
    small = append.cache.memory[0]
    num_pages = small.shape[0]
    assert num_pages == 11
    strides = (1 << 30, 1 << 29, *small.stride()[2:])
    try:
        flat = torch.empty(num_pages << 30, dtype=small.dtype, device="cuda")
    except torch.OutOfMemoryError:
        pytest.skip("needs 22 GiB of GPU memory")
    big = flat.as_strided(small.shape, strides)
    big.copy_(small)
    on_gpu = append.to("cuda")
    on_gpu = Append(on_gpu.rows, Cache("NHD", (big,), 2, 64), on_gpu.tables)
    append.run()
    on_gpu.run()
    on_gpu.check(append.cache.memory)


def test_a_graph_replays_for_later_steps() -> None:
    """Other rows, requests, positions and page tables, in the same memory; a smaller step is padded with -1."""
    max_rows, max_batch, max_pages = 40, 6, 64
    shape = {"page_size": 8, "num_kv_heads": 4, "head_dim": 128}
    steps = [
        ([0, 17, 3], [10, 1, 4]),
        ([10, 18, 7, 100], [1, 1, 1, 37]),
        ([0], [1]),
        ([20, 20, 20, 20, 20, 20], [5, 6, 7, 0, 9, 13]),
    ]
    appends = [
        random_append(old, new, i, **shape, num_padding_rows=max_rows - sum(new))
        for i, (old, new) in enumerate(steps)
    ]
    rows = {name: torch.empty_like(tensor, device="cuda") for name, tensor in appends[0].rows.items()}
    tables = {
        name: torch.full((size,), -1, dtype=torch.int32, device="cuda")
        for name, size in (
            ("kv_indices", max_pages),
            ("kv_indptr", max_batch + 1),
            ("kv_last_page_len", max_batch),
        )
    }
    memory = torch.zeros((max_pages, 2, 8, 4, 128), dtype=torch.bfloat16, device="cuda")
    static = Append(rows, Cache("NHD", (memory,), 4, 128), tables)

    def load(append: Append) -> None:
        for name, tensor in append.rows.items():
            rows[name].copy_(tensor)
        for name, tensor in append.tables.items():
            tables[name].fill_(0)
            tables[name][: tensor.numel()].copy_(tensor)
        memory.fill_(7.0)

    load(appends[0])
    static.run()  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static.run()
    for append in (*appends[1:], *appends):
        load(append)
        expected = static.expected()
        graph.replay()
        static.check(expected)


def check_first_calls_in_a_capture() -> None:
    append = random_append([3], [5], 1).to("cuda")
    expected = append.expected()
    v, s = random_states(1, 9, 2, 3, 64, device="cuda")
    out, lse = torch.empty_like(v[:, 0]), torch.empty_like(s[:, 0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        append.run()
        onewave.merge_states(v, s, out=out, lse=lse)
    graph.replay()
    append.check(expected)
    check_against(merged(v, s), out.cpu(), lse.cpu())


def test_first_calls_may_be_captured(elsewhere: ProcessPoolExecutor) -> None:
    """In a process that has launched neither: their code is loaded during the capture, and is no part of it."""
    elsewhere.submit(check_first_calls_in_a_capture).result()


def test_calls_go_to_the_current_stream() -> None:
    """Behind work that takes a while there, not beside it."""
    append = random_append([100], [60], 1).to("cuda")
    expected = append.expected()
    new_key = append.rows["append_key"].clone()
    append.rows["append_key"].zero_()
    v, s = random_states(1, 20, 2, 3, 64, device="cuda")
    expected_states = merged(v, s)
    late = torch.zeros_like(v)
    out, lse = torch.empty_like(v[:, 0]), torch.empty_like(s[:, 0])
    onewave.merge_states(late, s, out=out, lse=lse)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        append.rows["append_key"].copy_(new_key)
        append.run()
        late.copy_(v)
        onewave.merge_states(late, s, out=out, lse=lse)
    stream.synchronize()
    append.check(expected)
    check_against(expected_states, out.cpu(), lse.cpu())


def test_nothing_is_allocated() -> None:
    append = random_append([100], [60], 1).to("cuda")
    v, s = random_states(1, 20, 2, 3, 64, device="cuda")
    v_a, s_a, v_b, s_b = v[:, 0], s[:, 0], v[:, 1], s[:, 1]
    out, lse, mask = (
        torch.empty_like(v_a),
        torch.empty_like(s_a),
        torch.ones(20, dtype=torch.bool, device="cuda"),
    )

    def num_allocations() -> Any:
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    calls: tuple[Callable[[], Any], ...] = (
        append.run,
        functools.partial(onewave.merge_states, v, s, out=out, lse=lse),
        functools.partial(onewave.merge_state, v_a, s_a, v_b, s_b, out=out, lse=lse),
        functools.partial(onewave.merge_state_in_place, out, lse, v_b, s_b, mask),
    )
    for call in calls:
        before = num_allocations()
        call()
        assert num_allocations() == before


def check_merge(expected: Reference, out: torch.Tensor, lse: torch.Tensor) -> None:
    check_against(expected, out.cpu(), lse.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 24, 64, 80, 128, 256, 576])
def test_states_merge_by_their_log_sum_exps(head_dim: int, dtype: torch.dtype) -> None:
    for num_states in (0, 1, 2, 3, 4, 5, 13):
        for empty in (0.0, 0.4, 1.0):
            v, s = random_states(
                num_states, 11, num_states, 3, head_dim, dtype=dtype, empty=empty, device="cuda"
            )
            expected = merged(v, s)
            check_merge(expected, *onewave.merge_states(v, s))
            if num_states == 2:
                check_merge(expected, *onewave.merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1]))


def test_many_rows() -> None:
    """Against the CPU: more rows than fill the GPU once."""
    v, s = random_states(1, 2048, 3, 32, 128, empty=0.2)
    expected = onewave.merge_states(v.float(), s)
    check_merge(Reference(*expected), *onewave.merge_states(v.cuda(), s.cuda()))


def test_log_sum_exps_that_are_far_apart() -> None:
    s = torch.tensor([[[-3000.0], [-3000.0]], [[3000.0], [0.0]], [[-1e30], [-math.inf]]], device="cuda")
    v = torch.randn(3, 2, 1, 8, device="cuda")
    check_merge(merged(v, s), *onewave.merge_states(v, s))


def test_strides() -> None:
    """States of several GPUs lie first; outputs are every other head of a wider tensor, whose rest stays."""
    v, s = (x.transpose(0, 1) for x in random_states(2, 4, 33, 2, 64, device="cuda"))
    wide = torch.full((33, 4, 128), 7.0, dtype=torch.bfloat16, device="cuda")
    wide_lse = torch.full((33, 4), 7.0, device="cuda")
    out, lse = wide[:, ::2, 64:], wide_lse[:, ::2]
    onewave.merge_states(v, s, out=out, lse=lse)
    check_merge(merged(v, s), out, lse)
    assert bool((wide[:, 1::2] == 7).all() and (wide[..., :64] == 7).all() and (wide_lse[:, 1::2] == 7).all())


@pytest.mark.parametrize("head_dim", [8, 64, 128, 576])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_place(dtype: torch.dtype, head_dim: int) -> None:
    """The same bits as out of place: no lane sees what another has stored. Rows of False stay."""
    v, s = random_states(3, 3000, 2, 4, head_dim, dtype=dtype, device="cuda")
    v_a, s_a, v_b, s_b = (x.contiguous() for x in (v[:, 0], s[:, 0], v[:, 1], s[:, 1]))
    expected = onewave.merge_state(v_a, s_a, v_b, s_b)
    mask = torch.rand(3000, device="cuda") < 0.5
    for rows in (None, mask):
        ours, our_s = v_a.clone(), s_a.clone()
        onewave.merge_state_in_place(ours, our_s, v_b, s_b, rows)
        for result, whole, before in zip((ours, our_s), expected, (v_a, s_a), strict=True):
            wanted = whole
            if rows is not None:
                wanted = torch.where(rows.view(-1, *[1] * (whole.dim() - 1)), whole, before)
            torch.testing.assert_close(result, wanted, rtol=0, atol=0, equal_nan=True)
    other, other_s = v_b.clone(), s_b.clone()
    onewave.merge_state(v_a, s_a, other, other_s, out=other, lse=other_s)
    assert torch.equal(other, expected[0]) and torch.equal(other_s, expected[1])


def test_graph_of_merges() -> None:
    v, s = random_states(0, 50, 3, 4, 128, device="cuda")
    mask = torch.ones(50, dtype=torch.bool, device="cuda")
    out, lse = torch.empty_like(v[:, 0]), torch.empty_like(s[:, 0])
    onewave.merge_states(v, s, out=out, lse=lse)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        onewave.merge_states(v[:, :2], s[:, :2], out=out, lse=lse)
        onewave.merge_state_in_place(out, lse, v[:, 2], s[:, 2], mask)
    for seed in (1, 2, 3):
        for static, new in zip((v, s), random_states(seed, 50, 3, 4, 128, device="cuda"), strict=True):
            static.copy_(new)
        mask.copy_(torch.rand(50, device="cuda") < 0.7)
        graph.replay()
        first = onewave.merge_states(v[:, :2], s[:, :2])
        both = onewave.merge_state(*first, v[:, 2], s[:, 2])
        assert torch.equal(out, torch.where(mask[:, None, None], both[0], first[0]))
        assert torch.equal(lse, torch.where(mask[:, None], both[1], first[1]))


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_of_the_keys_are_all_of_them(num_parts: int, page_size: int) -> None:
    lens = [Lens(3000, 1, 4), Lens(700, 200), Lens(20, 3, 2), Lens(1, 1), Lens(0, 2)]
    batch = DenseBatch(lens, Heads(2, 4, 128), torch.bfloat16, 5)
    paged = batch.paged(page_size)
    v, s = states_of_parts(batch, paged, page_size, num_parts)
    check_parts(batch.expected(False), *onewave.merge_states(v, s))


def check_parts(expected: Expected, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Every part's output is rounded once, and the result: one rounding more than attention over all keys."""
    check_lse(lse, expected.lse)
    error = out.float() - expected.out
    assert bool(out.isfinite().all()) and not bool(out[expected.lse.isneginf()].any())
    assert error.abs().max().item() <= 3 * expected.low_precision_error
    assert error.norm() <= 1.5 * MAX_RELATIVE_ERROR[out.dtype] * expected.out.norm()


def test_append_then_attention_in_one_graph() -> None:
    """A decode step as an engine has it: captured once, replayed for the tokens that follow."""
    page_size, num_steps = 16, 20
    heads = Heads(2, 4, 128)
    old = [Lens(40, 1), Lens(700, 1), Lens(15, 1)]
    batch = DenseBatch([Lens(group.kv_len + num_steps, 1) for group in old], heads, torch.bfloat16, 6)
    paged = batch.paged(page_size)
    assert isinstance(paged.kv_cache, torch.Tensor)
    num_requests = len(old)
    # The last num_steps keys of each request are not in the cache yet.
    cache = paged.kv_cache.clone()
    attention = make_attention(batch)
    tables = (
        paged.kv_indices,
        paged.kv_indptr.cuda(),
        torch.ones(num_requests, dtype=torch.int32, device="cuda"),
    )
    key, value = (
        torch.zeros(num_requests, heads.num_kv_heads, heads.head_dim, dtype=torch.bfloat16, device="cuda")
        for _ in range(2)
    )
    batch_indices = torch.arange(num_requests, dtype=torch.int32, device="cuda")
    positions = torch.zeros_like(batch_indices)
    wipe = torch.full_like(key, math.nan)
    for step in range(num_steps):
        positions.copy_(int32([group.kv_len + step for group in old]))
        onewave.append_paged_kv_cache(wipe, wipe, batch_indices, positions, cache, *tables)
    out, lse = torch.empty_like(batch.q), torch.empty(batch.q.shape[:2], device="cuda")

    def plan_step(step: int) -> None:
        lens = int32([group.kv_len + step + 1 for group in old])
        attention.plan(
            paged.qo_indptr,
            paged.kv_indptr,
            paged.kv_indices,
            lens,
            heads.num_qo_heads,
            heads.num_kv_heads,
            heads.head_dim,
            heads.head_dim,
            page_size,
            causal=True,
        )
        positions.copy_(lens - 1)
        for new, dense in ((key, batch.k), (value, batch.v)):
            for i, group in enumerate(old):
                new[i] = dense[i][0, group.kv_len + step]

    graph = torch.cuda.CUDAGraph()
    for step in range(num_steps):
        plan_step(step)
        if step == 0:
            onewave.append_paged_kv_cache(key, value, batch_indices, positions, cache, *tables)
            with torch.cuda.graph(graph):
                onewave.append_paged_kv_cache(key, value, batch_indices, positions, cache, *tables)
                attention.run(batch.q, cache, out=out, lse=lse)
        graph.replay()
        assert bool(out.isfinite().all()), f"step {step}: a key was not there"
    # The last step saw all keys.
    expected = batch.expected(True)
    check_lse(lse, expected.lse)
    assert (out.float() - expected.out).abs().max().item() <= 2 * expected.low_precision_error
    torch.testing.assert_close(cache, paged.kv_cache, rtol=0, atol=0, equal_nan=True)


def test_tensors_of_another_device() -> None:
    append = random_append([3], [5], 1)
    on_gpu = append.to("cuda")
    for name in ("append_value", "batch_indices", "positions"):
        with pytest.raises(ValueError, match=f"{name} is on device cpu; it must be on cuda:0"):
            Append(on_gpu.rows | {name: append.rows[name]}, on_gpu.cache, on_gpu.tables).run()
    with pytest.raises(ValueError, match="paged_kv_cache is on device cpu; it must be on cuda:0"):
        Append(on_gpu.rows, append.cache, on_gpu.tables).run()
    v, s = random_states(1, 4, 2, 3, 64)
    with pytest.raises(ValueError, match="s is on device cpu; it must be on cuda:0"):
        onewave.merge_states(v.cuda(), s)
