"""Hostile numbers, each alone and against the others: an error that names the argument, or a plan that is right; never
a crash, a hang or gigabytes. With sanitizers in the library (.ci/sanitize) that includes what goes wrong unseen."""

from __future__ import annotations

import faulthandler
import math
import re
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onewave import _core
from onewave.plan_format import Plan
from plan_checks import CALIBRATION, Batch, check_area, check_prediction, check_records, check_request

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
MAX_KV_LEN = 2**30 - 256
# Of (kv head, row, key) that a request is checked for one by one.
MAX_BRUTE_FORCE = 1 << 18
MAX_SECONDS = 20  # of one example, which takes milliseconds: a hang, not a slow machine
MAX_GROWTH = 1 << 30  # bytes, of a whole test
ARGUMENTS = (
    "max_batch_size|max_total_qo_len|max_kv_len|num_ctas|num_kv_heads|num_qo_heads|head_dim|page_size|batch_size|"
    "qo_indptr|kv_indptr|kv_len_arr|sm_scale|block_table"
)

LENGTHS = st.one_of(
    st.integers(0, 300),
    st.sampled_from([0, 1, 31, 32, 33, 127, 128, 129, 4096, 1 << 20, 1 << 24, MAX_KV_LEN - 1, MAX_KV_LEN]),
)
INT32 = st.one_of(
    st.sampled_from([INT32_MIN, -1, 0, 1, MAX_KV_LEN, MAX_KV_LEN + 1, 1 << 30, INT32_MAX - 1, INT32_MAX]),
    st.integers(INT32_MIN, INT32_MAX),
)


def seldom(usual: st.SearchStrategy, hostile: st.SearchStrategy) -> st.SearchStrategy:
    """So that most examples get past the checks of the other arguments."""
    return st.integers(0, 15).flatmap(lambda i: hostile if i == 15 else usual)


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """A hang ends the process, with a traceback: it is in C++, where nothing else can end it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH


def hostile(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=timedelta(seconds=MAX_SECONDS))


def core_shape(shape: tuple[int, int, int, int]) -> _core.AttentionShape:
    num_qo_heads, num_kv_heads, head_dim, page_size = shape
    return _core.AttentionShape(
        num_qo_heads, num_kv_heads, head_dim, head_dim, page_size, _core.DType.BFLOAT16
    )


@dataclass(frozen=True)
class Arguments:
    """Arguments as they reach the planner."""

    limits: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]
    causal: bool
    sm_scale: float
    qo_indptr: list[int]
    kv_indptr: list[int]
    kv_len_arr: list[int]
    split_policy: _core.SplitPolicy = _core.SplitPolicy.BALANCED
    block_table: tuple[int, int] | None = None  # width and stride, in place of kv_indptr

    def core_limits(self) -> _core.PlanLimits:
        return _core.PlanLimits(*self.limits, self.split_policy)

    def core_shape(self) -> _core.AttentionShape:
        return core_shape(self.shape)

    def plan(self, costs: _core.CostModel | None) -> Plan:
        arrays = [np.array(a, dtype=np.int32) for a in (self.qo_indptr, self.kv_indptr, self.kv_len_arr)]
        addresses = [array.ctypes.data for array in arrays]
        sizes = {}
        if self.block_table is not None:
            addresses[1] = 0
            sizes = dict(zip(("block_table_width", "block_table_stride"), self.block_table, strict=True))
        return Plan(
            _core.plan_batch(
                self.core_limits(),
                self.core_shape(),
                self.causal,
                self.sm_scale,
                len(self.kv_len_arr),
                *addresses,
                0,
                costs,
                **sizes,
            )
        )

    def is_right(self) -> bool:
        """Where limits and shape are: in integers that do not overflow."""
        max_batch_size, max_total_qo_len, max_kv_len, _ = self.limits
        num_requests = len(self.kv_len_arr)
        if self.block_table is None:
            num_pages = np.diff(np.array(self.kv_indptr, dtype=object)).tolist()
            is_table = self.kv_indptr[0] >= 0 and self.kv_indptr == sorted(self.kv_indptr)
        else:
            width, stride = self.block_table
            num_pages = [width] * num_requests
            last = max(num_requests - 1, 1) * stride + width
            is_table = width > 0 and stride >= 0 and last <= INT32_MAX
        return bool(
            0 < self.sm_scale * math.log2(math.e) < 3.4e38
            and is_table
            and num_requests <= max_batch_size
            and self.qo_indptr[0] == 0
            and self.qo_indptr == sorted(self.qo_indptr)
            and self.qo_indptr[-1] <= max_total_qo_len
            and all(0 <= kv_len <= max_kv_len for kv_len in self.kv_len_arr)
            and all(pages * self.shape[3] >= n for pages, n in zip(num_pages, self.kv_len_arr, strict=True))
        )


def wrapped_sums(values: list[int]) -> list[int]:
    """As an engine has them that adds in int32."""
    return np.cumsum([0, *values], dtype=np.int64).astype(np.int32).tolist()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    num_kv_heads = draw(seldom(st.sampled_from([1, 2, 3, 8, 64, 1 << 16]), INT32))
    num_qo_heads = num_kv_heads * draw(st.sampled_from([1, 1, 4, 64, 65]))
    return (
        draw(seldom(st.just(max(INT32_MIN, min(num_qo_heads, INT32_MAX))), INT32)),
        num_kv_heads,
        draw(seldom(st.sampled_from([32, 64, 96, 128, 192, 256]), INT32)),
        draw(seldom(st.sampled_from([1, 7, 16, 1024, 1 << 29, MAX_KV_LEN]), INT32)),
    )


@st.composite
def all_arguments(draw: st.DrawFn) -> Arguments:
    """A batch whose lengths may be anything, then at most a few elements of its arrays, and limits that may be tight."""
    requests = draw(st.lists(st.tuples(LENGTHS, LENGTHS), max_size=6))
    shape = draw(shapes())
    kv_lens = [kv_len for kv_len, _ in requests]
    arrays = [
        wrapped_sums([qo_len for _, qo_len in requests]),
        wrapped_sums([-(-kv_len // max(shape[3], 1)) for kv_len in kv_lens]),
        kv_lens,
    ]
    for _ in range(draw(seldom(st.just(0), st.integers(1, 3)))):
        array = draw(st.sampled_from(arrays))
        if array:
            array[draw(st.integers(0, len(array) - 1))] = draw(INT32)
    tight = (len(requests), arrays[0][-1], max(kv_lens, default=0))
    limits = [
        draw(seldom(st.sampled_from([max(value, 1), max(value, most)]), INT32))
        for value, most in zip(tight, (1024, 4096, MAX_KV_LEN), strict=True)
    ]
    num_ctas = draw(seldom(st.sampled_from([1, 2, 132, 1024]), INT32))
    sm_scale = draw(seldom(st.just(0.125), st.sampled_from([0.0, -1.0, 1e-45, 3e38, math.inf, math.nan])))
    split_policy = draw(st.sampled_from(_core.SplitPolicy))
    widths = seldom(st.sampled_from([1, 300, 1 << 16]), INT32)
    strides = st.one_of(st.sampled_from([0, 300, 1 << 16]), st.integers(-(1 << 63), (1 << 63) - 1))
    block_table = draw(st.one_of(st.none(), st.tuples(widths, strides)))
    return Arguments(
        (*limits, num_ctas), shape, draw(st.booleans()), sm_scale, *arrays, split_policy, block_table
    )


class PagedBatch(Batch):
    """With the page table that was given, which may begin late and have more pages than are needed."""

    def __init__(self, arguments: Arguments) -> None:
        qo_lens = np.diff(arguments.qo_indptr).tolist()
        requests = list(zip(arguments.kv_len_arr, qo_lens, strict=True))
        limits = (arguments.limits[3], arguments.split_policy, arguments.limits[0])
        super().__init__(requests, *arguments.shape, arguments.causal, *limits)
        object.__setattr__(self, "given_kv_indptr", arguments.kv_indptr)
        if arguments.block_table is not None:
            stride = arguments.block_table[1]
            object.__setattr__(self, "given_kv_indptr", [i * stride for i in range(len(requests))])

    @property
    def kv_indptr(self) -> np.ndarray:
        return np.array(self.given_kv_indptr, dtype=np.int32)  # type: ignore[attr-defined]


def check_coverage(batch: Batch, plan: Plan) -> None:
    for request, (kv_len, qo_len) in enumerate(batch.requests):
        size = batch.num_qo_heads * max(kv_len, 1) * max(qo_len, 1)
        (check_area if size > MAX_BRUTE_FORCE else check_request)(batch, plan, request)


@hostile(400)
@given(all_arguments())
def test_an_error_that_names_the_argument_or_a_right_plan(arguments: Arguments) -> None:
    try:
        layout = _core.workspace_layout(arguments.core_limits(), arguments.core_shape())
    except ValueError as error:
        assert re.match(ARGUMENTS, str(error))
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            arguments.plan(None)
        return
    costs = _core.CostModel(arguments.core_shape(), CALIBRATION)
    if not arguments.is_right():
        with pytest.raises(ValueError, match=f"^({ARGUMENTS})"):
            arguments.plan(costs)
        return
    plan = arguments.plan(costs)
    assert plan.header["num_bytes"] <= layout.plan_bytes
    batch = PagedBatch(arguments)
    check_records(batch, plan)
    check_prediction(batch, plan)
    check_coverage(batch, plan)


@hostile(300)
@given(
    st.tuples(
        INT32, INT32, INT32, st.one_of(INT32, st.integers(1, 1024)), st.sampled_from(_core.SplitPolicy)
    ),
    shapes(),
)
def test_a_workspace_is_bounded_whatever_the_limits(limits: tuple, shape: tuple) -> None:
    try:
        layout = _core.workspace_layout(_core.PlanLimits(*limits), core_shape(shape))
    except ValueError as error:
        assert re.match(ARGUMENTS, str(error))
        return
    assert 0 < layout.plan_bytes <= 1 << 27
    partials = layout.max_partial_rows * 4 * (1 + shape[2])
    assert layout.plan_bytes + partials <= layout.total_bytes < layout.plan_bytes + partials + 512


def check_the_largest_plan() -> None:
    """One prompt of 1.6 million tiles; a fresh process, so that the peak is its own."""
    qo_len = 210_000_000
    batch = Batch([(MAX_KV_LEN, qo_len)], num_qo_heads=1, num_kv_heads=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = batch.plan()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert len(plan.items) >= qo_len // 128
    assert grown < MAX_GROWTH, f"{grown} bytes for a plan of {plan.header['num_bytes']}"


def test_the_largest_plan_takes_less_than_a_gigabyte(elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_the_largest_plan).result(timeout=200)


RATES = seldom(
    st.sampled_from([1e-6, 1e-3, 1.0, 1e6]),
    st.sampled_from([0.0, -1.0, 1e-45, 1e-38, 3e38, math.inf, -math.inf, math.nan]),
)


@hostile(200)
@given(st.data())
def test_costs_of_a_hostile_calibration(data: st.DataObject) -> None:
    """They are refused, or decide who does what and nothing else."""
    rates = [data.draw(RATES) for _ in range(13)]
    points = data.draw(st.lists(seldom(st.integers(1, 1024), INT32), unique=True, max_size=2))
    kernel = _core.KernelRates(128, _core.Loader.TMA, 2, 2, *rates[:5], rates[5:8])
    memory = [
        _core.MemoryRate(num_ctas, rate) for num_ctas, rate in zip(sorted(points), rates[8:10], strict=False)
    ]
    calibration = _core.Calibration("hostile", *rates[10:13], memory, [kernel])
    batch = Batch(
        data.draw(st.lists(st.tuples(LENGTHS, st.integers(0, 300)), max_size=5)),
        page_size=1024,
        num_ctas=data.draw(st.sampled_from([1, 132, 1024])),
    )
    try:
        costs = _core.CostModel(batch.shape(), calibration)
    except ValueError as error:
        assert re.match("calibration of hostile: every rate and time must be positive", str(error))
        return
    arrays = [batch.qo_indptr, batch.kv_indptr, batch.kv_len_arr]
    plan = Arguments(
        tuple(getattr(batch.limits(), name) for name in ("max_batch_size", "max_total_qo_len", "max_kv_len"))
        + (batch.num_ctas,),
        (batch.num_qo_heads, batch.num_kv_heads, batch.head_dim, batch.page_size),
        batch.causal,
        0.125,
        *(array.tolist() for array in arrays),
    ).plan(costs)
    check_records(batch, plan)
    check_coverage(batch, plan)


@pytest.mark.parametrize("page_size", [INT32_MIN, -16, -1, 0, 7, INT32_MAX])
def test_pages_that_no_box_is_made_for_are_gathered(page_size: int) -> None:
    assert _core.choose_loader(page_size) == _core.Loader.GATHER


def test_a_memory_without_points_has_no_rate() -> None:
    calibration = _core.Calibration("empty", 1.0, 1.0, 1.0, [], [])
    with pytest.raises(ValueError, match="calibration of empty has no points of the memory"):
        calibration.memory_gb_per_s(1)


def test_a_memory_between_points_far_apart_has_a_rate() -> None:
    points = [_core.MemoryRate(722, 1e6), _core.MemoryRate(1024, 1e-6)]
    calibration = _core.Calibration("steep", 1.0, 1.0, 1.0, points, [])
    assert all(calibration.memory_gb_per_s(num_ctas) > 0 for num_ctas in (700, 722, 723, 1023, 1024, 1025))
