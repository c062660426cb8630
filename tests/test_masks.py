"""What queries see beside all keys, on the host: keys that no row of a tile sees are in no item, and one mask gives one
result, however it is given. test_product.py has all kinds together, test_mask_arguments.py what is refused."""

import itertools
import math
import random
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Masks, Paged
from gpu_checks import MIXED, WILD_PAGE, Outputs, as_block_table, make_attention, plan, run_twice
from onewave.plan_format import Plan
from plan_checks import CALIBRATION_FILE, TILE_KV
from test_errors import int32
from test_mask_arguments import assert_same
from test_product import cat_bits, draw_custom_mask

pytestmark = pytest.mark.usefixtures("float32_means_float32")

LOG2_E = 1 / math.log(2)
PAGE_SIZE = 16
HEADS = Heads(2, 5, 64)


def limited_attention(num_ctas: int = 132, **options: Any) -> onewave.BatchAttention:
    return onewave.BatchAttention(
        device="cpu",
        max_batch_size=64,
        max_total_qo_len=1024,
        max_kv_len=16384,
        num_ctas=num_ctas,
        calibration=CALIBRATION_FILE,
        **options,
    )


def check(
    attention: onewave.BatchAttention, batch: DenseBatch, paged: Paged, masks: Masks, **options: Any
) -> Outputs:
    outputs = Outputs(batch)
    run_twice(attention, outputs, paged, sinks=masks.sinks, **options)
    outputs.check(batch.expected(masks))
    return outputs


# Narrow and wide, one without queries and one without keys, more queries than keys; tiles end within a token.
LENS = [Lens(1700, 3), Lens(333, 70), Lens(50, 1), Lens(0, 4), Lens(40, 0), Lens(30, 45), Lens(129, 129)]
REQUESTS = range(len(LENS))


def pack(masks: list[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bit by bit, and where each request's bytes begin."""
    packed: list[int] = []
    indptr = [0]
    for mask in masks:
        bits: list[bool] = [] if mask is None else mask.flatten().tolist()
        for begin in range(0, len(bits), 8):
            packed.append(sum(bit << i for i, bit in enumerate(bits[begin : begin + 8])))
        indptr.append(len(packed))
    return torch.tensor(packed, dtype=torch.uint8), torch.tensor(indptr)


def draw_masks(seed: int) -> list[torch.Tensor]:
    """The first hides steps of keys from all."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    masks = [draw_custom_mask(group, draw.choice(["random", "tree"]), draw, generator) for group in LENS]
    masks[0][:, 200:600] = False
    return masks


def test_packed_masks_are_the_same_masks(seed: int) -> None:
    """To the bit, also where requests' bytes are told, lie anywhere and have others behind them."""
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, seed, "cpu")
    paged, masks = batch.paged(PAGE_SIZE), draw_masks(seed)
    packed, indptr = pack([*masks])
    unused = torch.full((5,), 255, dtype=torch.uint8)
    moved = {"packed_custom_mask": torch.cat([unused, packed, unused]), "mask_indptr": indptr + 5}
    results = []
    for given in ({"custom_mask": cat_bits(masks)}, {"packed_custom_mask": packed}, moved):
        attention = make_attention(batch)
        plan(attention, batch, paged, PAGE_SIZE, False, **given)
        outputs = check(attention, batch, paged, Masks(custom=[*masks]))
        results.append((outputs.out, outputs.lse))
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("causal", [True, False, "by request"])
def test_requests_without_a_mask_go_by_causal(causal: bool | str, seed: int) -> None:
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    draw = random.Random(seed)
    masks = [mask if draw.random() < 0.5 else None for mask in draw_masks(seed)]
    packed, indptr = pack(masks)
    by_request = [draw.random() < 0.5 if causal == "by request" else causal is True for _ in LENS]
    attention = make_attention(batch)
    given = torch.tensor(by_request) if isinstance(causal, str) else causal
    plan(attention, batch, paged, PAGE_SIZE, given, packed_custom_mask=packed, mask_indptr=indptr)
    check(attention, batch, paged, Masks(by_request, custom=masks))


@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_that_says_causal_or_all(causal: bool, seed: int) -> None:
    """In place of the argument, which says the contrary. Where all is seen, no bits are in the plan."""
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    masks = [torch.ones(group.qo_len, group.kv_len, dtype=torch.bool) for group in LENS]
    if causal:
        masks = [mask.tril(group.kv_len - group.qo_len) for mask, group in zip(masks, LENS, strict=True)]
    attention = make_attention(batch)
    plan(attention, batch, paged, PAGE_SIZE, not causal, custom_mask=cat_bits(masks))
    check(attention, batch, paged, Masks(causal))
    assert (len(Plan(attention.plan_bytes()).mask_rows) > 0) == causal


def test_a_mask_that_hides_all(seed: int) -> None:
    """Of all requests, and of one beside others."""
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    attention = make_attention(batch)
    nothing = [torch.zeros(group.qo_len, group.kv_len, dtype=torch.bool) for group in LENS]
    plan(attention, batch, paged, PAGE_SIZE, True, custom_mask=cat_bits(nothing))
    items = Plan(attention.plan_bytes()).items
    assert (items["kv_begin"] == items["kv_end"]).all()
    outputs = check(attention, batch, paged, Masks(custom=[*nothing]))
    assert not bool(outputs.out[: outputs.num_rows].any())
    assert bool(outputs.lse[: outputs.num_rows].isneginf().all())
    masks = [nothing[1] if request == 1 else None for request in REQUESTS]
    packed, indptr = pack(masks)
    plan(attention, batch, paged, PAGE_SIZE, True, packed_custom_mask=packed, mask_indptr=indptr)
    check(attention, batch, paged, Masks(True, custom=masks))


def tiles_of(plan: Plan) -> dict[tuple[int, int, int, int], tuple[int, int]]:
    """By request, first and last token and kv head of a tile of rows: the keys that its items have, one
    after the other and without gaps."""
    group_size = int(plan.header["group_size"])
    ranges: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}
    for item in plan.items:
        rows = int(item["row_begin"]), int(item["row_begin"] + item["num_rows"]) - 1
        for head in range(item["kv_head_begin"], item["kv_head_end"]):
            tile = (int(item["request"]), rows[0] // group_size, rows[1] // group_size, head)
            ranges.setdefault(tile, []).append((int(item["kv_begin"]), int(item["kv_end"])))
    for of_tile in ranges.values():
        of_tile.sort()
        assert all(one[1] == other[0] for one, other in itertools.pairwise(of_tile))
    return {tile: (of_tile[0][0], of_tile[-1][1]) for tile, of_tile in ranges.items()}


@pytest.mark.parametrize("has_bounds", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_ctas", [7, 132])
@pytest.mark.parametrize("window_left", [0, 127, 128, 1000])
def test_keys_before_the_window_are_in_no_item(
    window_left: int, num_ctas: int, causal: bool, has_bounds: bool
) -> None:
    """But those of a step that has the first; of upper bounds one step more, which may move."""
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, 0, "cpu")
    paged = batch.paged(PAGE_SIZE)
    attention = make_attention(batch, num_ctas=num_ctas)
    bounds = {"actual_kv_len_arr": paged.kv_len_arr} if has_bounds else {}
    plan(attention, batch, paged, PAGE_SIZE, causal, window_left=window_left, **bounds)
    tiles = tiles_of(Plan(attention.plan_bytes()))
    assert {tile[0] for tile in tiles} == {i for i in REQUESTS if LENS[i].qo_len > 0}
    for (request, first, last, _), keys in tiles.items():
        kv_len, qo_len, _ = LENS[request]
        end = max(kv_len - qo_len + last + 1, 0) if causal else kv_len
        begin = max(kv_len - qo_len + first - window_left - (TILE_KV if has_bounds else 0), 0)
        assert keys == (begin // TILE_KV * TILE_KV, end)


@pytest.mark.parametrize("window_left", [-1, 130])
@pytest.mark.parametrize("num_ctas", [7, 132])
def test_keys_that_a_mask_hides_from_a_tile_are_in_no_item(
    num_ctas: int, window_left: int, seed: int
) -> None:
    """128 by 128."""
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, seed, "cpu")
    paged, masks = batch.paged(PAGE_SIZE), draw_masks(seed)
    attention = make_attention(batch, num_ctas=num_ctas)
    plan(attention, batch, paged, PAGE_SIZE, True, custom_mask=cat_bits(masks), window_left=window_left)
    oracle = Masks(window_left=window_left, custom=[*masks])
    num_hidden = 0
    for (request, first, last, _), keys in tiles_of(Plan(attention.plan_bytes())).items():
        seen = ~oracle.hidden(request, LENS[request], batch.device)[first : last + 1]
        steps = [seen[:, begin : begin + TILE_KV] for begin in range(0, seen.shape[1], TILE_KV)]
        assert keys == (0, sum(step.shape[1] for step in steps if bool(step.any())))
        num_hidden += seen.shape[1] - keys[1]
    assert num_hidden > 0
    check(attention, batch, paged, oracle)


# With head_dim 256 a fixed split begins at 1024 keys, and few CTAs take two kv heads in a step.
BOUNDED_HEADS = Heads(4, 2, 256)
BOUNDED_LENS = [
    *(Lens(2600, 1), Lens(700, 3), Lens(300, 200), Lens(129, 5), Lens(1500, 8), Lens(3, 40)),
    *(Lens(0, 4), Lens(0, 70), Lens(50, 0)),
]
BOUNDED_WINDOWS = (0, 130, 1500, 2**31 - 1)
GAPS = (0, 1, 127, 128, 129, 1000)


def shortened(batch: DenseBatch, kv_lens: list[int]) -> DenseBatch:
    """The same queries, and the first keys of each request; groups are of one request."""
    lens = [group._replace(kv_len=kv_len) for group, kv_len in zip(batch.lens, kv_lens, strict=True)]
    other = DenseBatch(lens, batch.heads, batch.dtype, 0, "cpu")
    other.q = batch.q
    other.k, other.v = (
        [rows[:, :kv_len] for rows, kv_len in zip(dense, kv_lens, strict=True)]
        for dense in (batch.k, batch.v)
    )
    return other


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_ctas", [7, 132])
@pytest.mark.parametrize("split_policy", ["balanced", "fixed"])
def test_windows_of_lengths_below_their_bounds(
    split_policy: str, num_ctas: int, causal: bool, seed: int
) -> None:
    """They end at the last key that there is, as plan() and update_kv_lens() find it, not at the bound."""
    draw = random.Random(seed)
    batch = DenseBatch(BOUNDED_LENS, BOUNDED_HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    gaps = draw.sample([*GAPS, *draw.choices(GAPS, k=3)], len(BOUNDED_LENS))
    bounds = paged.kv_len_arr + int32(*gaps)
    table = as_block_table(paged, -(-int(bounds.max()) // PAGE_SIZE))
    # A page of nobody, full of NaN: what is above the lengths is not read.
    table[table == WILD_PAGE] = min(set(range(len(paged.kv_cache))) - set(paged.kv_indices.tolist()))
    lens_of_runs = [
        [group.kv_len for group in BOUNDED_LENS],
        [max(group.kv_len - draw.choice([*GAPS, draw.randint(0, 2600)]), 0) for group in BOUNDED_LENS],
        [0 for _ in BOUNDED_LENS],
        [group.kv_len for group in BOUNDED_LENS],
    ]
    actual = int32(*lens_of_runs[0])
    attention = limited_attention(num_ctas, split_policy=split_policy, num_windows=len(BOUNDED_WINDOWS))
    attention.plan(
        *(paged.qo_indptr, None, None, bounds),
        *(BOUNDED_HEADS.num_qo_heads, BOUNDED_HEADS.num_kv_heads, 256, 256, PAGE_SIZE),
        causal=causal,
        block_table=table,
        actual_kv_len_arr=actual,
        window_left=BOUNDED_WINDOWS,
    )
    assert any(len(Plan(attention.plan_bytes(i)).split_tiles) > 0 for i in range(len(BOUNDED_WINDOWS)))
    for step, kv_lens in enumerate(lens_of_runs):
        if step > 0:
            actual.copy_(int32(*kv_lens))
            attention.update_kv_lens()
        other = shortened(batch, kv_lens)
        for window, window_left in enumerate(BOUNDED_WINDOWS):
            outputs = Outputs(other)
            attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse, window=window)
            try:
                outputs.check(other.expected(Masks(causal, window_left)))
            except AssertionError as error:
                pytest.fail(f"{gaps=} {kv_lens=} {window_left=}: {error}")


def test_a_work_list_for_each_window(seed: int) -> None:
    windows = (-1, 0, 130)
    batch = DenseBatch(LENS, HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    attention = limited_attention(num_windows=3)
    plan(attention, batch, paged, PAGE_SIZE, True, window_left=windows)
    for window in (2, 0, 1):
        check(attention, batch, paged, Masks(True, windows[window]), window=window)
    assert len({attention.plan_bytes(window) for window in range(3)}) == 3
    assert attention.plan_bytes() == attention.plan_bytes(window=0)
    with pytest.raises(ValueError, match="window is 3; it must be from 0 to 2"):
        attention.plan_bytes(3)


def test_a_natural_lse(seed: int) -> None:
    """The same, in base e, with splits and rows without keys; the output is not another."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    attention = make_attention(batch)
    plan(attention, batch, paged, PAGE_SIZE, True)
    assert len(Plan(attention.plan_bytes()).split_tiles) > 0
    for sinks in (None, torch.linspace(-2, 9, HEADS.num_qo_heads)):
        out, lse = attention.run(batch.q, paged.kv_cache, sinks=sinks)
        natural_out, natural_lse = attention.run(batch.q, paged.kv_cache, sinks=sinks, natural_lse=True)
        assert lse is not None and natural_lse is not None
        assert torch.equal(natural_out, out)
        torch.testing.assert_close(natural_lse * LOG2_E, lse)


def test_sinks(seed: int) -> None:
    """Of minus infinity they are none. A row without keys has nothing but its sink."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed, "cpu")
    paged = batch.paged(PAGE_SIZE)
    attention = make_attention(batch)
    plan(attention, batch, paged, PAGE_SIZE, True)
    without = check(attention, batch, paged, Masks(True))
    is_empty = without.lse.isneginf()
    assert bool(is_empty.any()) and not bool(is_empty[batch.total_qo_len :].any())
    none = torch.full((HEADS.num_qo_heads,), -math.inf)
    outputs = Outputs(batch)
    run_twice(attention, outputs, paged, sinks=none)
    assert_same((outputs.out, outputs.lse), (without.out, without.lse))
    sinks = torch.randn(HEADS.num_qo_heads, generator=torch.Generator().manual_seed(seed)) * 5
    outputs = check(attention, batch, paged, Masks(True, sinks=sinks))
    assert not bool(outputs.out[is_empty].any())
    torch.testing.assert_close(outputs.lse[is_empty], (sinks * LOG2_E).expand_as(is_empty)[is_empty])
