"""Shared prefixes: what the planner makes of them, results on the CPU executor, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onewave
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onewave import _core
from onewave.plan_format import Plan
from plan_checks import Batch, check_plan, check_request, prefix_items

Groups = list[tuple[int, int, int]]


def draw_groups(draw: st.DrawFn, begin: int, end: int, num_tokens: int, depth: int) -> Groups:
    """A tree of prefixes of the requests [begin, end), which already share `num_tokens`."""
    groups: Groups = []
    while begin < end:
        size = draw(st.integers(1, end - begin))
        if draw(st.integers(0, 3)) > 0:
            longer = max(num_tokens + draw(st.sampled_from([-200, 0, 1, 100, 128, 200, 1000])), 0)
            groups.append((begin, begin + size, longer))
            if depth > 0:
                groups += draw_groups(draw, begin, begin + size, longer, depth - 1)
        begin += size
    return groups


def longest_prefix(groups: Groups, request: int) -> int:
    return max((tokens for begin, end, tokens in groups if begin <= request < end), default=0)


@st.composite
def prefix_batches(draw: st.DrawFn) -> Batch:
    num_requests = draw(st.integers(1, 12))
    groups = draw_groups(draw, 0, num_requests, 0, 2)
    group_size = draw(st.sampled_from([1, 4, 7, 64]))
    num_kv_heads = draw(st.sampled_from([1, 2, 5]))
    requests = []
    for request in range(num_requests):
        qo_len = draw(st.sampled_from([0, 1, 1, 1, 2, 5, 17, 40, 150]))
        own = draw(st.sampled_from([0, 1, 50, 129, 700]))
        # The first query sees all of the prefix, itself among it.
        requests.append((longest_prefix(groups, request) + max(qo_len - 1, 0) + own, qo_len))
    return Batch(
        requests=requests,
        num_qo_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        page_size=draw(st.sampled_from([1, 16, 64])),
        causal=draw(st.booleans()),
        num_ctas=draw(st.integers(1, 150)),
        window_left=draw(st.sampled_from([-1, -1, -1, 200])),
        prefix_groups=tuple(draw(st.permutations(groups))),
    )


@settings(max_examples=200, deadline=None)
@given(prefix_batches())
def test_invariants(batch: Batch) -> None:
    check_plan(batch, batch.plan())


@settings(max_examples=60, deadline=None)
@given(st.data(), prefix_batches())
def test_custom_masks_that_show_the_prefix(data: st.DataObject, batch: Batch) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    masks: list[np.ndarray | None] = []
    for request, (kv_len, qo_len) in enumerate(batch.requests):
        mask = random.random((qo_len, kv_len)) < 0.6
        mask[:, : longest_prefix(list(batch.prefix_groups), request)] = True
        masks.append(None if random.random() < 0.3 else mask)
    batch = replace(batch, custom_masks=masks)
    check_plan(batch, batch.plan())


@settings(max_examples=60, deadline=None)
@given(st.data(), prefix_batches())
def test_lengths_that_turn_out_shorter(data: st.DataObject, bounds: Batch) -> None:
    """But not than the prefixes, which all of a request's queries see."""
    actual = bounds.kv_len_arr.copy()
    plan = replace(bounds, actual_kv_lens=actual).plan()
    for request, (kv_len, qo_len) in enumerate(bounds.requests):
        shortest = min(longest_prefix(list(bounds.prefix_groups), request) + max(qo_len - 1, 0), kv_len)
        actual[request] = data.draw(st.integers(shortest, kv_len + 5))
    updated = Plan(_core.update_kv_lens(plan.to_bytes()))
    lens = np.minimum(actual, bounds.kv_len_arr)
    batch = replace(
        bounds,
        requests=[(int(kv_len), qo) for kv_len, (_, qo) in zip(lens, bounds.requests, strict=True)],
    )
    for request in range(len(batch.requests)):
        check_request(batch, updated, request)


def keys_read(plan: Plan) -> int:
    """Of all kv heads and tiles of rows."""
    items = plan.items
    return int(
        ((items["kv_end"] - items["kv_begin"]) * (items["kv_head_end"] - items["kv_head_begin"])).sum()
    )


def test_a_prefix_is_read_once_for_each_128_rows() -> None:
    batch = Batch([(16384 + 512, 1)] * 64, prefix_groups=((0, 64, 16384),))
    plan = batch.plan()
    check_plan(batch, plan)
    assert keys_read(plan) == 8 * (64 * 512 + 2 * 16384)
    narrow = replace(batch, requests=batch.requests[:8], prefix_groups=((0, 8, 16384),)).plan()
    assert keys_read(narrow) == 8 * (8 * 512 + 16384)
    assert len(narrow.wide_items) == 0


def test_two_levels() -> None:
    groups = ((0, 64, 16384), *((i, i + 8, 18432) for i in range(0, 64, 8)))
    batch = Batch([(18432 + 256, 1)] * 64, prefix_groups=groups)
    plan = batch.plan()
    check_plan(batch, plan)
    assert keys_read(plan) == 8 * (64 * 256 + 8 * 2048 + 2 * 16384)


def test_what_is_not_worth_sharing_is_planned_as_without() -> None:
    """Prompts of many rows, a group of one, and less than a step of keys."""
    requests = [(3000, 512), (3000, 512), (2000, 1), (2000, 1)]
    batch = Batch(requests, prefix_groups=((0, 2, 2048), (2, 3, 1024), (2, 4, 127)))
    assert batch.plan_bytes() == replace(batch, prefix_groups=()).plan_bytes()


def test_a_window_reads_for_each_request() -> None:
    batch = Batch([(3000, 1)] * 8, prefix_groups=((0, 8, 2048),), window_left=100)
    assert batch.plan_bytes() == replace(batch, prefix_groups=()).plan_bytes()


def test_of_more_rows_than_half_a_tile_nothing_is_shared() -> None:
    """17 queries of four heads; the 16 of the others still are."""
    batch = Batch([(3000, 16), (3000, 16), (3000, 17), (3000, 16), (3000, 16)], prefix_groups=((0, 5, 2048),))
    plan = batch.plan()
    items = plan.items[prefix_items(plan)]
    # Two tiles of 128 rows, both of the first request's keys.
    assert set(zip(items["request"], items["q_token_begin"], items["num_rows"], strict=True)) == {
        (0, 0, 128),
        (0, 49, 128),
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((0, 5, 100),), r"prefix_groups\[0\] has the requests 0\.\.5, .* range of the 4"),
        (((3, 2, 100),), r"prefix_groups\[0\] has the requests 3\.\.2"),
        (((0, 2, 256), (0, 4, 2000)), r"prefix_groups\[1\] has 2000 tokens, .* at most 1000, .* request 0 "),
        (((0, 3, 256), (1, 4, 300)), r"requests 0\.\.3 and 1\.\.4, one must have all of the other's or none"),
    ],
)
def test_bad_groups_are_named(groups: tuple[tuple[int, int, int], ...], message: str) -> None:
    batch = Batch([(1000, 1)] * 4, prefix_groups=groups)
    with pytest.raises(ValueError, match=message):
        batch.plan_bytes()


def shared_cache(groups: Groups, kv_lens: list[int], page_size: int) -> tuple[list[list[int]], int]:
    """Page ids of each request, the first ones those of its group's first request; and how many pages there are."""
    num_pages = 0
    pages: list[list[int]] = []
    for kv_len in kv_lens:
        count = -(-kv_len // page_size)
        pages.append(list(range(num_pages, num_pages + count)))
        num_pages += count
    for begin, end, num_tokens in sorted(groups, key=lambda group: (group[0], -group[1], group[2])):
        for request in range(begin, end):
            shared = num_tokens // page_size
            pages[request][:shared] = pages[begin][:shared]
    return pages, num_pages


GROUPS: Groups = [(0, 12, 1024), (0, 4, 1280), (4, 9, 1408), (5, 7, 1600), (10, 12, 512)]
QO_LENS = (1, 3, 1, 40, 1, 2, 1, 1, 200, 1, 0, 1)


def plan_and_run(
    prefix_groups: Groups | torch.Tensor | None, num_ctas: int = 20, causal: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    page_size, num_qo_heads, num_kv_heads, head_dim = 16, 8, 2, 64
    # The first ones have no keys but the prefix's, or only for their later queries.
    kv_lens = [
        longest_prefix(GROUPS, i) + max(qo_len - 1, 0) + 17 * max(i - 4, 0)
        for i, qo_len in enumerate(QO_LENS)
    ]
    pages, num_pages = shared_cache(GROUPS, kv_lens, page_size)
    generator = torch.Generator().manual_seed(7)
    kv_cache = torch.randn(num_pages, 2, page_size, num_kv_heads, head_dim, generator=generator)
    q = torch.randn(sum(QO_LENS), num_qo_heads, head_dim, generator=generator)
    attention = onewave.BatchAttention(device="cpu", num_ctas=num_ctas)
    attention.plan(
        torch.tensor([0, *QO_LENS]).cumsum(0).int(),
        torch.tensor([0, *map(len, pages)]).cumsum(0).int(),
        torch.tensor([page for row in pages for page in row], dtype=torch.int32),
        torch.tensor(kv_lens, dtype=torch.int32),
        *(num_qo_heads, num_kv_heads, head_dim, head_dim, page_size),
        causal=causal,
        q_data_type=torch.float32,
        kv_data_type=torch.float32,
        prefix_groups=prefix_groups,
    )
    out, lse = attention.run(q, kv_cache)
    assert lse is not None
    has_prefixes = bool(prefix_items(Plan(attention.plan_bytes())).any())
    assert has_prefixes == (prefix_groups is not None)
    return out, lse


@pytest.mark.parametrize("num_ctas", [1, 20, 132])
@pytest.mark.parametrize("causal", [False, True])
def test_results_are_those_without_groups(num_ctas: int, causal: bool) -> None:
    out, lse = plan_and_run(None, causal=causal)
    for groups in (GROUPS, torch.tensor(GROUPS, dtype=torch.int32)):
        shared_out, shared_lse = plan_and_run(groups, num_ctas, causal)
        torch.testing.assert_close(shared_out, out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(shared_lse, lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prefix_groups", "message"),
    [
        (5, "TypeError: prefix_groups is a int; it must be a sequence of tuples or a tensor"),
        ([(0, 2)], r"ValueError: prefix_groups\[0\] is \(0, 2\); it must be \(request_begin,"),
        ([(0, 2, 1.5)], r"TypeError: prefix_groups\[0\] is 1.5; it must be an int"),
        ([(0, 2, -1)], r"ValueError: prefix_groups\[0\] is -1; it must be from 0"),
        (torch.zeros(2, 2, dtype=torch.int32), r"ValueError: prefix_groups has shape \(2, 2\)"),
        (torch.zeros(2, 3), "ValueError: prefix_groups has dtype torch.float32"),
        ([(0, 2, 9999)], r"ValueError: prefix_groups\[0\] has 9999 tokens"),
    ],
)
def test_bad_arguments_are_named(prefix_groups: object, message: str) -> None:
    kind, text = message.split(": ", 1)
    with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind], match=text):
        plan_and_run(prefix_groups)  # type: ignore[arg-type]


def small_plan(prefix_groups: Groups, **options: object) -> None:
    attention = onewave.BatchAttention(device="cpu", **options)  # type: ignore[arg-type]
    index = torch.arange(5, dtype=torch.int32)
    attention.plan(
        *(index, index * 8, torch.zeros(32, dtype=torch.int32), torch.full((4,), 512, dtype=torch.int32)),
        *(8, 2, 64, 64, 64),
        prefix_groups=prefix_groups,
    )


def test_limits_of_sharing() -> None:
    two_levels = [(0, 4, 256), (0, 2, 384)]  # 4 queries, and 2 once more
    small_plan(two_levels, max_shared_qo_len=6)
    with pytest.raises(ValueError, match="prefix_groups has 6 query tokens, .* max_shared_qo_len = 5"):
        small_plan(two_levels, max_shared_qo_len=5)
    with pytest.raises(ValueError, match="it must have at most max_shared_qo_len = 0"):
        small_plan(two_levels, max_shared_qo_len=0)
    with pytest.raises(ValueError, match="prefix_groups is given with fixed splits"):
        small_plan(two_levels, split_policy="fixed")
    small_plan([], max_shared_qo_len=0, split_policy="fixed")
    with pytest.raises(ValueError, match="max_shared_qo_len is 65537"):
        small_plan(two_levels, max_shared_qo_len=65537)


def test_a_custom_mask_that_hides_a_prefix_is_refused() -> None:
    masks: list[np.ndarray | None] = [np.ones((1, 1000), dtype=bool) for _ in range(4)]
    batch = Batch([(1000, 1)] * 4, custom_masks=masks, prefix_groups=((0, 4, 512),))
    check_plan(batch, batch.plan())
    hidden = masks[2]
    assert hidden is not None
    hidden[0, 200] = False
    with pytest.raises(ValueError, match=r"custom_mask hides keys of 128\.\.256 from token 0 of request 2"):
        batch.plan_bytes()
