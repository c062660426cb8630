"""The planner: invariants on random batches, balance, and what it says of bad input."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onewave import _core
from onewave._cli.plan import plan_workload, predict_workload
from onewave.bench.workloads import WORKLOADS
from onewave.plan_format import Plan
from plan_checks import Batch, check_plan, check_request

LENGTHS = st.one_of(
    st.tuples(st.integers(0, 3000), st.integers(0, 9)),  # decode and verification, empty ones too
    st.tuples(st.integers(0, 900), st.integers(0, 300)),  # chunks; kv_len < qo_len among them
    st.tuples(st.sampled_from([0, 1, 127, 128, 129, 4096]), st.sampled_from([0, 1, 4, 32, 33, 128, 129])),
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    num_kv_heads = draw(st.sampled_from([1, 2, 4, 5, 6, 8]))
    group_size = draw(st.sampled_from([1, 4, 7, 8, 64]))
    max_requests = 4 if group_size == 64 else 12
    return Batch(
        requests=draw(st.lists(LENGTHS, max_size=max_requests)),
        num_qo_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([64, 128])),
        page_size=draw(st.sampled_from([1, 7, 8, 16, 64, 1024])),
        causal=draw(st.booleans()),
        num_ctas=draw(st.integers(1, 200)),
        split_policy=draw(st.sampled_from(list(_core.SplitPolicy))),
        window_left=draw(st.sampled_from([-1, -1, 0, 100, 128, 1000])),
    )


@st.composite
def custom_masks(draw: st.DrawFn, batch: Batch) -> list[np.ndarray | None]:
    """Of some requests, with steps of keys that all see or nobody."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks: list[np.ndarray | None] = []
    for kv_len, qo_len in batch.requests:
        mask = random.random((qo_len, kv_len)) < random.random()
        for key in range(0, kv_len, 128):
            if random.random() < 0.6:
                mask[:, key : key + 128] = random.random() < 0.5
        masks.append(None if random.random() < 0.3 else mask)
    return masks


@settings(max_examples=60, deadline=None)
@given(st.data(), batches())
def test_custom_masks(data: st.DataObject, batch: Batch) -> None:
    batch = replace(batch, custom_masks=data.draw(custom_masks(batch)))
    check_plan(batch, batch.plan())


@settings(max_examples=150, deadline=None)
@given(batches())
def test_invariants(batch: Batch) -> None:
    check_plan(batch, batch.plan())


@settings(max_examples=100, deadline=None)
@given(st.data(), batches())
def test_bounds_are_planned_as_lengths_and_updated_to_any_below(data: st.DataObject, bounds: Batch) -> None:
    """Of the lengths that stand in the array when it is read, each allowed (kv head, row, key) is seen once."""
    actual = bounds.kv_len_arr.copy()
    plan = replace(bounds, actual_kv_lens=actual).plan()
    check_plan(replace(bounds, actual_kv_lens=actual), plan)
    if bounds.window_left < 0:
        assert (plan.items == bounds.plan().items).all()
    assert len(plan.item_bounds) == len(plan.items)
    for _ in range(2):
        actual[:] = [data.draw(st.integers(-3, kv_len + 300)) for kv_len in bounds.kv_len_arr]
        updated = Plan(_core.update_kv_lens(plan.to_bytes()))
        assert (updated.item_bounds == plan.item_bounds).all()
        lens = np.clip(actual, 0, bounds.kv_len_arr)
        batch = replace(
            bounds,
            requests=[(int(kv_len), qo) for kv_len, (_, qo) in zip(lens, bounds.requests, strict=True)],
        )
        for request in range(len(batch.requests)):
            check_request(batch, updated, request)
        plan = updated  # what was read before makes no difference


def test_without_bounds_there_is_nothing_to_update() -> None:
    plan = Batch([(3000, 1), (500, 200)]).plan()
    assert len(plan.item_bounds) == 0
    assert _core.update_kv_lens(plan.to_bytes()) == plan.to_bytes()


@settings(max_examples=20, deadline=None)
@given(batches(), batches())
def test_plan_is_a_pure_function(batch: Batch, other: Batch) -> None:
    first = batch.plan_bytes()
    other.plan_bytes()
    assert batch.plan_bytes() == first


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("num_qo_heads", "num_kv_heads"), [(1, 1), (8, 1), (28, 4)])
@pytest.mark.parametrize(
    "requests",
    [
        [(146, 146)],
        [(67, 67)],
        [(2048, 1)] * 77,
        [(4099, 129)] * 2,
        [(600, 1)] * 264 + [(5000, 3)] * 128,
        [(1024, 1)] * 100 + [(8192, 17)] * 8,
        [(766, 2)] * 99 + [(1024, 512)],
        [(2, 235), (1, 13353)],
    ],
    ids=lambda requests: f"{len(requests)}x{requests[0]}",
)
def test_invariants_of_known_sets(
    requests: list[tuple[int, int]], num_qo_heads: int, num_kv_heads: int, causal: bool
) -> None:
    batch = Batch(requests, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, causal=causal)
    check_plan(batch, batch.plan())


Pieces = list[tuple[int, ...]]


def pieces_of(plan: Plan, request: int) -> Pieces:
    """All that decides the bits of a request's results: kind, tiles, kv heads, keys, and the order of merges."""
    items, header = plan.items, plan.header
    fields = ("row_begin", "num_rows", "causal_shift", "kv_begin", "kv_end", "heads_per_step", "split_idx")
    return sorted(
        (
            head,
            int(i < header["wide_begin"]),
            int(items[i]["split_tile"] >= 0),
            *(int(items[i][f]) for f in fields),
        )
        for i in np.flatnonzero(items["request"] == request)
        for head in range(items[i]["kv_head_begin"], items[i]["kv_head_end"])
    )


FIXED = _core.SplitPolicy.FIXED


@settings(max_examples=100, deadline=None)
@given(st.data(), batches())
def test_fixed_splits_of_a_request_do_not_depend_on_the_others(data: st.DataObject, batch: Batch) -> None:
    requests = [*batch.requests, (data.draw(st.integers(1, 20000)), data.draw(st.integers(1, 8)))]
    order = data.draw(st.permutations(range(len(requests))))
    kept = order[: data.draw(st.integers(1, len(order)))]
    limits = {"split_policy": FIXED, "max_batch_size": 2 * len(requests)}
    whole = replace(batch, requests=requests, **limits).plan()
    part = replace(batch, requests=[requests[i] for i in kept], **limits).plan()
    for place, request in enumerate(kept):
        assert pieces_of(part, place) == pieces_of(whole, request)


def test_fixed_splits_fill_the_gpu_with_one_long_request() -> None:
    batch = Batch([(131072, 1)], split_policy=FIXED, max_batch_size=256)
    check_plan(batch, batch.plan())
    assert batch.plan().summary()["makespan_over_mean"] < 1.15
    keys = streamed_keys(Batch([(8192, 1)] * 67, split_policy=FIXED).plan())
    assert keys.max() <= 1.06 * keys.mean()


@pytest.mark.parametrize("num_kv_heads", [4, 8, 32])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_fixed_splits_of_the_default_limits_take_less_than_64_mb(num_kv_heads: int, head_dim: int) -> None:
    shape = _core.AttentionShape(32, num_kv_heads, head_dim, head_dim, 16, _core.DType.BFLOAT16)
    limits = _core.PlanLimits(2048, 65536, 1 << 20, 132, FIXED)
    assert _core.workspace_layout(limits, shape).total_bytes < 64 << 20


def test_invariants_of_a_long_prefill() -> None:
    batch = Batch([(8190, 7939)], num_qo_heads=2, num_kv_heads=2)
    check_plan(batch, batch.plan())


@pytest.mark.parametrize(
    ("requests", "num_kv_heads"),
    [([(60000, 1)] * 5, 7), ([(60000, 32)] * 5, 1), ([(20000, 128)] * 5, 1)],
    ids=["narrow items", "narrow rows", "wide rows"],
)
def test_the_workspace_holds_a_cut_at_every_boundary(
    requests: list[tuple[int, int]], num_kv_heads: int
) -> None:
    """One request fewer than CTAs: each boundary cuts one of them, which is what the size query has to foresee."""
    batch = Batch(
        requests,
        num_qo_heads=num_kv_heads,
        num_kv_heads=num_kv_heads,
        causal=False,
        num_ctas=len(requests) + 1,
    )
    plan = batch.plan()
    assert len(plan.split_tiles) == len(requests)
    check_plan(batch, plan)


def streamed_keys(plan: Plan) -> np.ndarray:
    """Of each CTA: keys times kv heads, which is what a memory-bound batch pays for."""
    items = plan.items
    keys = (items["kv_end"] - items["kv_begin"]) * (items["kv_head_end"] - items["kv_head_begin"])
    return np.array([keys[cta["narrow_begin"] : cta["narrow_end"]].sum() for cta in plan.ctas])


@pytest.mark.parametrize("num_requests", [20, 32, 33, 34, 40, 48, 64, 67, 100, 128])
def test_decode_is_balanced_for_any_batch_size(num_requests: int) -> None:
    keys = streamed_keys(Batch([(8192, 1)] * num_requests).plan())
    assert keys.max() <= 1.03 * keys.mean()


@pytest.mark.parametrize(
    "requests",
    [
        [(131072, 1)],
        [(8192, 1)] * 32 + [(8192, 4096)],
        [(4096, 4096)],
        [(2048, 2048)] * 8,
        [(16384, 512)],
        [(32768, 64)] * 3,
    ],
    ids=str,
)
def test_predicted_makespan_is_near_the_mean(requests: list[tuple[int, int]]) -> None:
    summary = Batch(requests).plan().summary()
    assert summary["makespan_over_mean"] <= 1.10


def test_narrow_work_leaves_sms_to_wide_work() -> None:
    plan = Batch([(8192, 1)] * 64 + [(8192, 8192)]).plan()
    has_narrow = plan.ctas["narrow_end"] > plan.ctas["narrow_begin"]
    assert 0 < has_narrow.sum() < 132


def test_whole_wide_units_fill_their_rounds() -> None:
    """Of 128 units of about equal length each CTA that is left to them takes as many: one more for some would end last."""
    workload = WORKLOADS["scaling/chunk/decode_b64_8k_chunk512"]
    calibration = _core.calibration_of("NVIDIA H100 80GB HBM3")
    bars = predict_workload(plan_workload(workload, calibration), workload, calibration)
    units = Counter(bar.cta for bar in bars if bar.kind == "wide")
    assert sum(units.values()) == 128 and set(units.values()) == {4}


def test_beside_wide_work_a_few_ctas_stream_heads_together() -> None:
    """What the few stream is long enough for it, what each of all CTAs would is not."""
    decodes = [(8192, 1)] * 128
    shape = {"num_qo_heads": 64, "num_kv_heads": 4, "head_dim": 64, "page_size": 1}
    mixed = Batch([*decodes, (8192, 4096)], **shape).plan()
    assert (mixed.items["heads_per_step"][: mixed.header["wide_begin"]] == 4).all()
    assert (Batch(decodes, **shape).plan().items["heads_per_step"] == 1).all()


def test_whole_wide_items_run_longest_first() -> None:
    plan = Batch([(8192, 8192), (2000, 500)]).plan()
    assert len(plan.split_tiles) == 0
    assert (np.diff(-(-plan.wide_items["kv_end"] // 128)) <= 0).all()


@pytest.mark.parametrize(
    ("prompts", "turns"),
    [
        ([(8192, 4096)], "head"),
        ([(16384, 1024)], "head"),
        ([(8192, 2048), (8192, 2048)], "request, head"),
        ([(400, 400), (300, 300), (200, 200)], ""),
    ],
    ids=str,
)
def test_beside_streams_wide_items_take_turns_of_what_the_l2_keeps(
    prompts: list[tuple[int, int]], turns: str
) -> None:
    """4 MiB of K and V: one kv head of 8192 keys, all kv heads of several short prompts."""
    items = Batch([(8192, 1)] * 64 + prompts).plan().wide_items
    order = {"head": items["kv_head_begin"], "request": items["request"]}
    of_item = list(zip(*(order[name].tolist() for name in turns.split(", ") if name), strict=True))
    assert of_item == sorted(of_item)
    if not turns:
        assert set(items["kv_head_begin"][:16]) == set(range(8))


def test_a_batch_without_streams_runs_longest_first_whatever_the_l2_keeps() -> None:
    plan = Batch([(16384, 8192), (16384, 8192)]).plan()
    assert len(plan.split_tiles) == 0
    assert (np.diff(-(-plan.wide_items["kv_end"] // 128)) <= 0).all()


def test_empty_batch_has_no_items() -> None:
    plan = Batch([]).plan()
    assert len(plan.items) == 0
    assert (plan.ctas["narrow_end"] == 0).all() and (plan.ctas["first_item"] == -1).all()


def test_header_repeats_the_batch() -> None:
    header = Batch([(300, 2), (0, 1)], num_qo_heads=28, num_kv_heads=4, page_size=3).plan().header
    assert (header["batch_size"], header["total_qo_len"], header["page_size"]) == (2, 3, 3)
    assert (header["num_qo_heads"], header["num_kv_heads"], header["group_size"]) == (28, 4, 7)
    assert header["sm_scale_log2"] == pytest.approx(0.125 * np.log2(np.e))


def plan_arrays(
    qo_indptr: list[int],
    kv_indptr: list[int],
    kv_len_arr: list[int],
    batch_size: int | None = None,
    sm_scale: float = 1.0,
) -> bytes:
    arrays = [np.array(values, dtype=np.int32) for values in (qo_indptr, kv_indptr, kv_len_arr)]
    return _core.plan_batch(
        _core.PlanLimits(4, 100, 1000, 132),
        _core.AttentionShape(8, 2, 128, 128, 16, _core.DType.BFLOAT16),
        True,
        sm_scale,
        len(kv_len_arr) if batch_size is None else batch_size,
        *(array.ctypes.data for array in arrays),
        0,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [0, 1], [9]), r"qo_indptr\[0\] is 1, it must be 0"),
        (([0, 5, 4], [0, 1, 2], [9, 9]), r"qo_indptr\[2\] is 4, .* at least qo_indptr\[1\] = 5"),
        (([0, 101], [0, 7], [101]), r"qo_indptr\[1\] is 101, .* max_total_qo_len = 100"),
        (([0, 1], [-1, 7], [9]), r"kv_indptr\[0\] is -1, it must be at least 0"),
        (([0, 1, 2], [0, 4, 3], [9, 9]), r"kv_indptr\[2\] is 3, .* at least kv_indptr\[1\] = 4"),
        (([0, 1], [0, 1], [-9]), r"kv_len_arr\[0\] is -9, it must be in 0\.\.1000"),
        (([0, 1], [0, 99], [1001]), r"kv_len_arr\[0\] is 1001, it must be in 0\.\.1000 \(max_kv_len\)"),
        (([0, 1], [0, 2], [33]), r"request 0 2 pages of 16 tokens, kv_len_arr\[0\] = 33 needs at least 3"),
        (([0] * 6, [0] * 6, [0] * 5), r"batch_size is 5, it must be in 0\.\.4"),
        (([0], [0], [], -1), r"batch_size is -1"),
        (([0, 1], [0, 1], [9], 1, 0.0), "sm_scale is 0, it must be positive and finite"),
        (([0, 1], [0, 1], [9], 1, float("inf")), "sm_scale is inf"),
        (([0, 1], [0, 1], [9], 1, float("nan")), "sm_scale is -?nan"),
        (
            ([0, 1], [0, 1], [9], 1, 3e38),
            r"sm_scale is 3e\+38, it must be positive and finite, in base 2 too",
        ),
    ],
)
def test_bad_batches_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_arrays(*arguments)


@pytest.mark.parametrize(
    ("limits", "shape", "message"),
    [
        ((0, 1, 1, 1), (8, 8, 128, 128, 16), "max_batch_size is 0"),
        ((1, 0, 1, 1), (8, 8, 128, 128, 16), "max_total_qo_len is 0"),
        ((1, 1, 0, 1), (8, 8, 128, 128, 16), "max_kv_len is 0"),
        ((1, 1, 1, 0), (8, 8, 128, 128, 16), r"num_ctas is 0, it must be in 1\.\.1024"),
        ((1, 1, 1, 1025), (8, 8, 128, 128, 16), "num_ctas is 1025"),
        ((1, 1, 1, 1), (9, 8, 128, 128, 16), "num_qo_heads is 9, it must be a multiple of num_kv_heads = 8"),
        ((1, 1, 1, 1), (65, 1, 128, 128, 16), "num_qo_heads / num_kv_heads is 65, it must be at most 64"),
        ((1, 1, 1, 1), (8, 0, 128, 128, 16), "num_kv_heads is 0"),
        ((1, 1, 1, 1), (8, 8, 80, 128, 16), "head_dim_qk is 80, it must be a multiple of 32"),
        ((1, 1, 1, 1), (8, 8, 128, 288, 16), r"head_dim_vo is 288, it must be in 32\.\.256"),
        ((1, 1, 1, 1), (8, 8, 128, 128, 0), "page_size is 0"),
        (
            (1, 2**30 - 255, 1, 1),
            (8, 8, 128, 128, 16),
            r"max_total_qo_len is 1073741569, .* in 1\.\.1073741568",
        ),
        ((1, 1, 2**30 - 255, 1), (8, 8, 128, 128, 16), r"max_kv_len is 1073741569, .* in 1\.\.1073741568"),
        ((1, 2**30 - 256, 1, 1), (64, 1, 128, 128, 16), "max_total_qo_len is 1073741568, it must be at most"),
        ((1, 2**30 - 256, 1, 1), (64, 64, 128, 128, 16), "make a plan of up to"),
    ],
)
def test_bad_limits_and_shapes_are_named(limits: tuple, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.workspace_layout(_core.PlanLimits(*limits), _core.AttentionShape(*shape, _core.DType.FLOAT16))
