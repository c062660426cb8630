"""append_paged_kv_cache() on the CPU: against plain Python, in every layout, and as attention sees the cache."""

import inspect
import math
from collections.abc import Callable
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
    hard_elements,
    int32,
    random_append,
    skipping_append,
)
from dense_batch import DenseBatch, Heads, Lens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_errors import ERRORS, shifted

Required = inspect.Parameter.empty
PARAMETERS = {
    "append_key": Required,
    "append_value": Required,
    "batch_indices": Required,
    "positions": Required,
    "paged_kv_cache": Required,
    "kv_indices": Required,
    "kv_indptr": Required,
    "kv_last_page_len": Required,
    "kv_layout": "NHD",
}


def test_names_order_and_defaults_are_flashinfers() -> None:
    parameters = inspect.signature(onewave.append_paged_kv_cache).parameters
    theirs = {name: p.default for name, p in parameters.items() if p.kind != inspect.Parameter.KEYWORD_ONLY}
    assert theirs == PARAMETERS
    assert {name: parameters[name].default for name in parameters.keys() - theirs} == {
        "k_scale": None,
        "v_scale": None,
    }
    names = list(inspect.signature(onewave.get_batch_indices_positions).parameters)
    assert names == ["append_indptr", "seq_lens", "nnz"]


LENS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=5)


@settings(deadline=None)
@given(lens=LENS, page_size=st.integers(1, 20), layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 9))
def test_rows_land_in_their_pages_and_nowhere_else(
    lens: list[tuple[int, int]], page_size: int, layout: str, seed: int
) -> None:
    old_lens, new_lens = [old for old, _ in lens], [new for _, new in lens]
    append = random_append(
        old_lens, new_lens, seed, page_size=page_size, head_dim=8, layout=layout, num_padding_rows=3
    )
    append.run_and_check()


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.float16, 128), (torch.bfloat16, 80), (torch.float32, 4), (torch.float32, 96)],
)
def test_types_and_head_dims(dtype: torch.dtype, head_dim: int) -> None:
    append = random_append([5, 0, 90], [1, 33, 7], 2, dtype=dtype, head_dim=head_dim)
    append.run_and_check()


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_quantised_to_fp8(dtype: torch.dtype, scales: str) -> None:
    for page_size, layout in ((1, "NHD"), (16, "HND"), (5, "strided"), (5, "pair")):
        append = random_append(
            *([5, 0, 90], [1, 33, 7], 2),
            dtype=dtype,
            kv_dtype=FP8,
            page_size=page_size,
            layout=layout,
            head_dim=48,
            num_padding_rows=3,
            scales=scales,
        )
        append.run_and_check()


def test_the_nearest_of_fp8() -> None:
    hard = hard_elements()
    append = random_append([0], [len(hard)], 1, dtype=torch.float32, kv_dtype=FP8)
    append = append.with_(append_key=hard, append_value=-hard)
    append.run_and_check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_fp8_are_copied(layout: str) -> None:
    """All codes, NaN with a sign among them."""
    append = random_append([3], [4], 1, dtype=FP8, layout=layout, page_size=5)
    codes = torch.arange(512).to(torch.uint8).view(FP8).view(4, 2, 64)
    append = append.with_(append_key=codes, append_value=codes.flip(0))
    append.run_and_check()


@pytest.mark.parametrize("scales", [name for name in SCALES if name != "none"])
def test_what_is_stored_times_the_scale_is_the_row(scales: str) -> None:
    append = random_append([0], [16], 1, kv_dtype=FP8, scales=scales)
    append.run()
    page = append.tables["kv_indices"][0]
    for pages, name in zip(append.cache.pages, ("key", "value"), strict=True):
        scale = torch.as_tensor(append.scales.get(f"{name[0]}_scale", 1.0)).reshape(-1, 1)
        row = append.rows[f"append_{name}"].float()
        limit = 448 * scale
        error = (pages[page].float() * scale - row.clamp(-limit, limit)).abs()
        assert bool((error <= row.abs() / 15 + scale * 2**-10).all())


@pytest.mark.parametrize("layout", ["pair", "strided"])
@pytest.mark.parametrize(("head_dim", "head_dim_vo"), [(192, 128), (8, 24)])
def test_values_of_another_head_dim(head_dim: int, head_dim_vo: int, layout: str) -> None:
    append = random_append(
        [5, 0, 90], [1, 33, 7], 2, head_dim=head_dim, head_dim_vo=head_dim_vo, layout=layout
    )
    append.run_and_check()


@pytest.mark.parametrize("name", SKIPPED)
def test_rows_without_a_place_are_skipped(name: str) -> None:
    append = skipping_append(name)
    append.run_and_check()


@given(lens=LENS, num_padding_rows=st.integers(0, 4))
def test_batch_indices_and_positions(lens: list[tuple[int, int]], num_padding_rows: int) -> None:
    wanted = [(i, position) for i, (old, new) in enumerate(lens) for position in range(old, old + new)]
    wanted += [(-1, -1)] * num_padding_rows
    append_indptr = torch.tensor([0, *(new for _, new in lens)]).cumsum(0).int()
    seq_lens = int32([old + new for old, new in lens])
    found = onewave.get_batch_indices_positions(append_indptr, seq_lens, len(wanted))
    assert [tensor.dtype for tensor in found] == [torch.int32] * 2
    assert list(zip(*(tensor.tolist() for tensor in found), strict=True)) == wanted


def test_rows_before_all_padding_may_be_cut_off() -> None:
    """nnz is the caller's: fewer rows than append_indptr says are the first ones."""
    found = onewave.get_batch_indices_positions(int32([0, 3, 5]), int32([10, 20]), 4)
    assert [tensor.tolist() for tensor in found] == [[0, 0, 0, 1], [7, 8, 9, 18]]


@pytest.mark.parametrize("layout", ["NHD", "HND", "pair", "strided"])
def test_two_calls_fill_a_cache(layout: str) -> None:
    """With old keys and new ones: as DenseBatch scatters them."""
    page_size = 16
    batch = DenseBatch([Lens(50, 3), Lens(17, 17), Lens(33, 1)], Heads(2, 2, 64), torch.bfloat16, 3, "cpu")
    paged = batch.paged(page_size, layout)
    cache = paged.kv_cache
    for tensor in cache if isinstance(cache, tuple) else (cache,):
        tensor.fill_(math.nan)
    new_lens = int32([group.qo_len for group in batch.lens])
    for lens, seq_lens in (
        (paged.kv_len_arr - new_lens, paged.kv_len_arr - new_lens),
        (new_lens, paged.kv_len_arr),
    ):
        indptr = torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()
        where = onewave.get_batch_indices_positions(indptr, seq_lens, int(indptr[-1]))
        rows = [
            torch.cat(
                [dense[0, end - num : end] for dense, num, end in zip(part, lens, seq_lens, strict=True)]
            )
            for part in (batch.k, batch.v)
        ]
        onewave.append_paged_kv_cache(
            *rows,
            *where,
            cache,
            paged.kv_indices,
            paged.kv_indptr,
            torch.ones_like(seq_lens),
            "HND" if layout == "HND" else "NHD",
        )
    again = DenseBatch(batch.lens, batch.heads, batch.dtype, 3, "cpu").paged(page_size, layout)
    for ours, theirs in zip(*(_parts(one.kv_cache) for one in (paged, again)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def _parts(cache: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return cache if isinstance(cache, tuple) else (cache,)


def arguments_of(append: Append) -> dict[str, Any]:
    return append.rows | {"paged_kv_cache": append.cache.argument} | append.tables


# What is changed: the argument that the message names, its value made from the right one, and the rest of the message.
BAD_ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a list": ("append_key", lambda key: key.tolist(), "is a list; it must be a torch.Tensor"),
    "no device": (
        "append_key",
        lambda key: key.to("meta"),
        "is on device meta; it must be on a GPU or the CPU",
    ),
    "integers": ("append_key", lambda key: key.int(), "is torch.int32; it must be one of torch"),
    "rank 2": ("append_key", lambda key: key[0], "it must have 3 dimensions"),
    "rows of 24 bytes": ("append_key", lambda key: key[..., :12], "rows of 24 bytes, .*multiple of 16"),
    "no columns": ("append_key", lambda key: key[..., :0], "rows of 0 bytes"),
    "no heads": ("append_key", lambda key: key[:, :0], "must be|append_value"),
    "an odd address": ("append_key", shifted, "it must start at a multiple of 16 bytes"),
    "columns apart": ("append_key", lambda key: key.repeat(1, 1, 2)[..., ::2], "the last one must be 1"),
    "another type": (
        "append_value",
        lambda v: v.half(),
        "has dtype torch.float16; it must be torch.bfloat16",
    ),
    "another device": ("append_value", lambda v: v.to("meta"), "is on device meta; it must be on cpu"),
    "fewer rows": ("append_value", lambda v: v[1:], r"must be \[11, 2, 64\]: those of append_key, but"),
    "odd values": ("append_value", shifted, "it must start at a multiple of 16 bytes"),
    "int64 indices": ("batch_indices", lambda x: x.long(), "torch.int64; it must be torch.int32"),
    "too few indices": ("batch_indices", lambda x: x[1:], r"must be \[11\]: the rows of append_key"),
    "positions elsewhere": ("positions", lambda x: x.to("meta"), "meta; it must be on cpu"),
    "every second position": ("positions", lambda x: x.repeat_interleave(2)[::2], "it must be contiguous"),
    "pages in a table": ("kv_indices", lambda x: x[None], "it must have 1 dimension"),
    "indptr too short": (
        "kv_indptr",
        lambda x: x[1:],
        r"must be \[3\]: batch_size [+] 1, by kv_last_page_len",
    ),
    "lengths as floats": ("kv_last_page_len", lambda x: x.float(), "float32; it must be torch.int32"),
    "no cache": ("paged_kv_cache", lambda _: None, r"is a NoneType; it must be a torch.Tensor or a \(k, v\)"),
    "an empty pair": ("paged_kv_cache", lambda _: (), "has 0 tensors"),
    "cache without a pair": ("paged_kv_cache", lambda cache: cache[:, 0], "it must have 5 dimensions"),
    "a scalar": ("paged_kv_cache", lambda cache: cache.sum(), "it must have 5 dimensions"),
    "cache of another type": ("paged_kv_cache", lambda cache: cache.float(), "must be torch.bfloat16"),
    "cache elsewhere": ("paged_kv_cache", lambda cache: cache.to("meta"), "meta; it must be on cpu"),
    "cache of more heads": (
        "paged_kv_cache",
        lambda cache: cache.repeat(1, 1, 1, 2, 1),
        r"must be \[any, 2, 16, 2, 64\]",
    ),
    "a pair of two page sizes": (
        "paged_kv_cache",
        lambda cache: (cache[:, 0], cache[:, 1, :8]),
        r"paged_kv_cache\[1\] has shape .* it must be \[any, 16, 2, 64\]",
    ),
    "a pair of two sizes": (
        "paged_kv_cache",
        lambda cache: (cache[:, 0], cache[1:, 1]),
        "7 pages of k and 6",
    ),
    "pages of no tokens": ("paged_kv_cache", lambda cache: cache[:, :, :0], "page_size is 0"),
    "odd strides": (
        "paged_kv_cache",
        lambda cache: cache.repeat(1, 1, 1, 1, 2)[..., :68].contiguous()[..., :64],
        "multiples of 16 bytes",
    ),
    "scales of rows that are copied": (
        "k_scale",
        lambda _: 0.5,
        "it must be None where rows have the cache's dtype",
    ),
    "a scale of 1 too": (
        "v_scale",
        lambda _: torch.ones(1),
        "it must be None where rows have the cache's dtype",
    ),
    "another layout": ("kv_layout", lambda _: "NDH", "is 'NDH'; it must be 'NHD' or 'HND'"),
}


@pytest.mark.parametrize("mistake", BAD_ARGUMENTS)
def test_it_refuses(mistake: str) -> None:
    name, change, message = BAD_ARGUMENTS[mistake]
    append = random_append([35, 3], [6, 5], 1)
    untouched = append.cache.to("cpu").memory
    arguments = arguments_of(append)
    with pytest.raises(ERRORS, match=message) as error:
        onewave.append_paged_kv_cache(**(arguments | {name: change(arguments.get(name))}))
    if mistake not in ("no heads", "pages of no tokens"):
        error.match(name)
    append.check(untouched)


# As above, of rows that are quantised.
BAD_FP8: dict[str, tuple[str, Any, str]] = {
    "0": ("k_scale", 0.0, "is 0.0; it must be positive and finite"),
    "NaN": ("v_scale", math.nan, "is nan; it must be positive and finite"),
    "too small to divide by": ("k_scale", 1e-39, "1 / k_scale is .*; it must be positive and finite"),
    "a list": ("v_scale", [1.0, 2.0], "must be a float or a float32 tensor"),
    "of bfloat16": ("k_scale", torch.ones(2, dtype=torch.bfloat16), "it must be torch.float32"),
    "elsewhere": ("v_scale", torch.ones(2, device="meta"), "meta; it must be on cpu"),
    "of query heads": ("k_scale", torch.ones(4), r"\(4,\); it must have one element or be \[2\]: num_kv"),
    "in a column": ("v_scale", torch.ones(2, 1), r"\(2, 1\); it must have one element or be \[2\]"),
    "no element": ("k_scale", torch.ones(0), r"\(0,\); it must have one element or be \[2\]"),
    "values of fp8": ("append_value", torch.ones(11, 2, 64).to(FP8), "it must be torch.bfloat16"),
    "pair of two types": (
        "paged_kv_cache",
        tuple(torch.ones(7, 16, 2, 64).to(dtype) for dtype in (FP8, torch.bfloat16)),
        r"paged_kv_cache\[1\] has dtype torch.bfloat16; it must be torch.float8_e4m3fn",
    ),
}


@pytest.mark.parametrize("mistake", BAD_FP8)
def test_it_refuses_for_fp8(mistake: str) -> None:
    name, value, message = BAD_FP8[mistake]
    append = random_append([35, 3], [6, 5], 1, kv_dtype=FP8)
    untouched = append.cache.to("cpu").memory
    with pytest.raises(ERRORS, match=message) as error:
        onewave.append_paged_kv_cache(**(arguments_of(append) | {name: value}))
    error.match(name)
    append.check(untouched)


def test_rows_of_fp8_need_such_a_cache_and_no_scale() -> None:
    append = random_append([35, 3], [6, 5], 1, dtype=FP8)
    arguments = arguments_of(append)
    for changes, message in (
        ({"k_scale": 0.5}, "k_scale is 0.5; it must be None where rows"),
        (
            {"paged_kv_cache": append.cache.argument.bfloat16()},
            "paged_kv_cache has dtype torch.bfloat16; it must be torch.float8_e4m3fn",
        ),
        (
            {name: arguments[name][..., :8] for name in ("append_key", "append_value")},
            "append_key has rows of 8 bytes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            onewave.append_paged_kv_cache(**(arguments | changes))


def test_rows_of_the_cache_are_multiples_of_16_bytes_too() -> None:
    append = random_append([35, 3], [6, 5], 1, kv_dtype=FP8, head_dim=32)
    arguments = arguments_of(append)
    cut = {name: arguments[name][..., :24] for name in ("append_key", "append_value", "paged_kv_cache")}
    with pytest.raises(ValueError, match="paged_kv_cache has rows of 24 bytes"):
        onewave.append_paged_kv_cache(**(arguments | cut))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], int32([1]), 1), "append_indptr is a list; it must be a torch.Tensor"),
        ((int32([0, 1]).to("meta"), int32([1]), 1), "append_indptr is on device meta"),
        ((torch.tensor([0, 1]), int32([1]), 1), "append_indptr has dtype torch.int64"),
        ((int32([0, 1]), torch.tensor([1]), 1), "seq_lens has dtype torch.int64"),
        ((int32([0, 1, 2]), int32([1]), 1), r"append_indptr has shape \(3,\); it must be \[2\]"),
        ((int32([0, 1]), int32([1]), -1), "nnz is -1; it must be from 0"),
        ((int32([0, 1]), int32([1]), 1.5), "nnz is 1.5; it must be an int"),
    ],
)
def test_batch_indices_refuse(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ERRORS, match=message):
        onewave.get_batch_indices_positions(*arguments)
