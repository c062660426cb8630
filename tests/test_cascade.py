"""merge_state() and its kin on the CPU: against float64, and as the parts of attention go together."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import make_attention, plan
from hypothesis import given, settings
from hypothesis import strategies as st
from merges import cut_keys, merged, random_states, states_of_parts
from reference import check_against, reference
from test_errors import ERRORS, shifted


@pytest.mark.parametrize(
    ("function", "positional"),
    [
        (onewave.merge_state, ["v_a", "s_a", "v_b", "s_b"]),
        (onewave.merge_states, ["v", "s"]),
        (onewave.merge_state_in_place, ["v", "s", "v_other", "s_other", "mask"]),
    ],
)
def test_names_and_order_are_flashinfers(function: Callable[..., Any], positional: list[str]) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    ours = [p for p in parameters if p.name not in positional]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in ours)


@settings(deadline=None)
@given(
    seq_len=st.integers(0, 5),
    num_states=st.integers(0, 6),
    num_heads=st.integers(1, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    empty=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 9),
)
def test_states_merge_by_their_log_sum_exps(
    seq_len: int, num_states: int, num_heads: int, dtype: torch.dtype, empty: float, seed: int
) -> None:
    v, s = random_states(seed, seq_len, num_states, num_heads, 24, dtype=dtype, empty=empty)
    out, lse = onewave.merge_states(v, s)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    check_against(merged(v, s), out, lse)
    if num_states == 2:
        again = onewave.merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1])
        assert torch.equal(again[0], out) and torch.equal(again[1], lse)


def test_one_state_is_itself() -> None:
    v, s = random_states(1, 7, 1, 3, 16, empty=0)
    out, lse = onewave.merge_states(v, s)
    assert torch.equal(out, v[:, 0]) and torch.equal(lse, s[:, 0])


def test_log_sum_exps_that_are_far_apart() -> None:
    """Beyond what 2^s holds in float32, both ways."""
    s = torch.tensor([[[-3000.0], [-3000.0]], [[3000.0], [0.0]], [[-1e30], [-math.inf]]])
    v = torch.randn(3, 2, 1, 8)
    check_against(merged(v, s), *onewave.merge_states(v, s))


def test_states_of_several_gpus_lie_first() -> None:
    v, s = random_states(2, 4, 9, 2, 8)
    out, lse = onewave.merge_states(v.transpose(0, 1), s.transpose(0, 1))
    check_against(merged(v.transpose(0, 1), s.transpose(0, 1)), out, lse)


def test_outputs_that_are_given() -> None:
    v, s = random_states(3, 5, 2, 4, 8)
    wide = torch.full((5, 8, 16), 7.0, dtype=torch.bfloat16)
    wide_lse = torch.full((5, 8), 7.0)
    out, lse = wide[:, ::2, 8:], wide_lse[:, ::2]
    expected = merged(v, s)
    for function, states in (
        (onewave.merge_states, (v, s)),
        (onewave.merge_state, (v[:, 0], s[:, 0], v[:, 1], s[:, 1])),
    ):
        out.fill_(math.nan), lse.fill_(math.nan)
        returned = function(*states, out=out, lse=lse)
        assert returned[0] is out and returned[1] is lse
        check_against(expected, out, lse)
        assert bool(
            (wide[:, 1::2] == 7).all() and (wide[..., :8] == 7).all() and (wide_lse[:, 1::2] == 7).all()
        )


@pytest.mark.parametrize("has_mask", [False, True])
def test_in_place(has_mask: bool) -> None:
    v, s = random_states(4, 6, 2, 3, 8)
    mask = torch.tensor([True, False, True, True, False, True]) if has_mask else None
    expected = merged(v, s)
    ours, our_s = v[:, 0].clone(), s[:, 0].clone()
    assert onewave.merge_state_in_place(ours, our_s, v[:, 1], s[:, 1], mask) is None
    rows = torch.ones(6, dtype=torch.bool) if mask is None else mask
    check_against(type(expected)(expected.out[rows], expected.lse[rows]), ours[rows], our_s[rows])
    torch.testing.assert_close(ours[~rows], v[~rows, 0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(our_s[~rows], s[~rows, 0])


def test_an_output_may_be_a_state() -> None:
    v, s = random_states(5, 6, 2, 3, 8)
    expected = merged(v, s)
    onewave.merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1], out=v[:, 1], lse=s[:, 1])
    check_against(expected, v[:, 1], s[:, 1])


@pytest.mark.parametrize("num_parts", [2, 5])
def test_parts_of_the_keys_are_all_of_them(num_parts: int) -> None:
    """Requests with fewer pages than parts have parts without keys."""
    page_size = 8
    batch = DenseBatch(
        [Lens(100, 3), Lens(9, 2, 2), Lens(1, 1), Lens(0, 2)], Heads(2, 2, 64), torch.float32, 6, "cpu"
    )
    paged = batch.paged(page_size)
    v, s = states_of_parts(batch, paged, page_size, num_parts)
    check_against(reference(batch, False), *onewave.merge_states(v, s))


def test_a_shared_prefix_is_read_once() -> None:
    """The queries of all requests over the prefix as one request, each over its own keys, and the two merged."""
    page_size, prefix_pages = 8, 5
    prefix_len = page_size * prefix_pages
    batch = DenseBatch([Lens(60, 1, 3), Lens(51, 4)], Heads(2, 2, 64), torch.float32, 8, "cpu")
    for part in (batch.k, batch.v):
        for group in part:
            group[:, :prefix_len] = part[0][0, :prefix_len]
    paged = batch.paged(page_size)
    prefix = replace(
        paged,
        qo_indptr=torch.tensor([0, batch.total_qo_len], dtype=torch.int32),
        kv_indptr=torch.tensor([0, prefix_pages], dtype=torch.int32),
        kv_indices=paged.kv_indices[:prefix_pages],
        kv_len_arr=torch.tensor([prefix_len], dtype=torch.int32),
    )
    own = cut_keys(paged, page_size, lambda num_pages: (prefix_pages, num_pages))
    states = []
    for part, causal in ((prefix, False), (own, True)):
        attention = make_attention(batch)
        plan(attention, batch, part, page_size, causal)
        states += attention.run(batch.q, paged.kv_cache)
    check_against(reference(batch, True), *onewave.merge_state(*states))


def arguments() -> dict[str, Any]:
    v, s = random_states(7, 4, 2, 3, 8, empty=0)
    return {
        "v_a": v[:, 0],
        "s_a": s[:, 0],
        "v_b": v[:, 1],
        "s_b": s[:, 1],
        "out": v[:, 0] * 0,
        "lse": s[:, 0] * 0,
    }


# What is changed: the argument that the message names, its value made from the right one, and the rest of the message.
BAD_ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a list": ("v_a", lambda v: v.tolist(), "is a list; it must be a torch.Tensor"),
    "no device": ("v_a", lambda v: v.to("meta"), "is on device meta; it must be on a GPU or the CPU"),
    "float64": ("v_a", lambda v: v.double(), "is torch.float64; it must be one of torch"),
    "four dimensions": ("v_a", lambda v: v[None], "it must have 3 dimensions"),
    "rows of 8 bytes": ("v_a", lambda v: v[..., :4], "rows of 8 bytes, .* a multiple of 16"),
    "columns apart": ("v_a", lambda v: v.repeat(1, 1, 2)[..., ::2], "the last one must be 1"),
    "an odd address": ("v_a", shifted, "it must start at a multiple of 16 bytes"),
    "no v_b": ("v_b", lambda _: None, "is a NoneType; it must be a torch.Tensor"),
    "v_b of another type": ("v_b", lambda v: v.half(), "has dtype torch.float16; it must be torch.bfloat16"),
    "v_b elsewhere": ("v_b", lambda v: v.to("meta"), "is on device meta; it must be on cpu"),
    "v_b of another shape": ("v_b", lambda v: v[1:], r"must be \[4, 3, 8\]: seq_len, .* those of v_a"),
    "odd v_b": ("v_b", shifted, "it must start at a multiple of 16 bytes"),
    "s_a in low precision": ("s_a", lambda s: s.half(), "has dtype torch.float16; it must be torch.float32"),
    "s_b of another shape": (
        "s_b",
        lambda s: s[:, 1:],
        r"must be \[4, 3\]: seq_len, num_heads, those of v_a",
    ),
    "s_b elsewhere": ("s_b", lambda s: s.to("meta"), "is on device meta; it must be on cpu"),
    "out of another type": ("out", lambda out: out.float(), "has dtype torch.float32; it must be torch.bf"),
    "out of another shape": (
        "out",
        lambda out: out[1:],
        r"must be \[4, 3, 8\]: seq_len, num_heads, head_dim",
    ),
    "odd out": ("out", shifted, "it must start at a multiple of 16 bytes"),
    "lse in low precision": ("lse", lambda s: s.half(), "has dtype torch.float16; it must be torch.float32"),
    "lse of another shape": ("lse", lambda lse: lse.T, r"must be \[4, 3\]: seq_len, num_heads"),
}


@pytest.mark.parametrize("mistake", BAD_ARGUMENTS)
def test_merge_state_refuses(mistake: str) -> None:
    name, change, message = BAD_ARGUMENTS[mistake]
    right = arguments()
    with pytest.raises(ERRORS, match=name) as error:
        onewave.merge_state(**(right | {name: change(right[name])}))
    error.match(message)
    assert not bool(right["out"].any() or right["lse"].any()), "something was written"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask.int(), "mask has dtype torch.int32; it must be torch.bool"),
        (lambda mask: mask[1:], r"mask has shape \(3,\); it must be \[4\]: seq_len"),
        (lambda mask: mask.repeat_interleave(2)[::2], "mask has stride 2; it must be contiguous"),
        (lambda mask: mask.to("meta"), "mask is on device meta; it must be on cpu"),
    ],
)
def test_merge_state_in_place_refuses(change: Callable[[Any], Any], message: str) -> None:
    v_a, s_a, v_b, s_b, _, _ = arguments().values()
    before = v_a.clone()
    with pytest.raises(ERRORS, match=message):
        onewave.merge_state_in_place(v_a, s_a, v_b, s_b, change(torch.ones(4, dtype=torch.bool)))
    assert torch.equal(v_a, before)


@pytest.mark.parametrize(
    ("v_change", "s_change", "message"),
    [
        (lambda v: v[:, 0], lambda s: s, "v has shape .*; it must have 4 dimensions"),
        (lambda v: v, lambda s: s[:, 0], "s has shape .*; it must have 3 dimensions"),
        (lambda v: v, lambda s: s[:, 1:], r"s has shape \(4, 1, 3\); it must be \[4, 2, 3\]"),
        (lambda v: v, lambda s: s.double(), "s has dtype torch.float64; it must be torch.float32"),
        (lambda v: v[:, :, :0], lambda s: s[:, :, :0], "num_heads is 0; it must be from 1"),
    ],
)
def test_merge_states_refuses(
    v_change: Callable[[Any], Any], s_change: Callable[[Any], Any], message: str
) -> None:
    v, s = random_states(7, 4, 2, 3, 8)
    with pytest.raises(ERRORS, match=message):
        onewave.merge_states(v_change(v), s_change(s))
