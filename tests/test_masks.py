"""What queries see beside all keys, on the host: wrong arguments are named, keys that no row of a tile sees
are in no item, and one mask gives one result, however it is given. test_product.py has all kinds together."""

import contextlib
import itertools
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Masks, Paged
from gpu_checks import MIXED, WILD_PAGE, Outputs, as_block_table, make_attention, plan, run_twice
from onewave.plan_format import Plan
from plan_checks import CALIBRATION_FILE, TILE_KV
from test_errors import int32, plan_arguments, run_arguments, small_attention
from test_interface import random_run_arguments
from test_product import cat_bits, draw_custom_mask

pytestmark = pytest.mark.usefixtures("float32_means_float32")

LOG2_E = 1 / math.log(2)
PAGE_SIZE = 16
HEADS = Heads(2, 5, 64)
# Of plan_arguments: 3 queries on 40 keys, and one on 20.
SEES_ALL = torch.ones(3 * 40 + 20, dtype=torch.bool)
SEES_SOME = torch.arange(len(SEES_ALL)) % 3 == 0
PACKED = torch.full((15 + 3,), 255, dtype=torch.uint8)

Results = tuple[torch.Tensor, torch.Tensor]


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def masked_plan_arguments() -> dict[str, Any]:
    """For num_windows=2."""
    return plan_arguments() | {"causal": True, "window_left": (-1, 5), "logits_soft_cap": 5.0}


def run(attention: onewave.BatchAttention, **options: Any) -> Results:
    out, lse = attention.run(**random_run_arguments(), **options)
    assert lse is not None
    return out, lse


def assert_same(results: Results, others: Results) -> None:
    for one, other in zip(results, others, strict=True):
        assert torch.equal(one, other)


@contextlib.contextmanager
def refused(error: str) -> Iterator[None]:
    """Any exception's type and message, of which `error` is a pattern."""
    with pytest.raises(Exception) as raised:
        yield
    text = f"{raised.typename}: {raised.value}"
    assert re.match(error, text), text


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


PACKED_MASK = {"packed_custom_mask": PACKED}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"causal": None}, "TypeError: causal is None; it must be a bool or a tensor of them"),
        ({"causal": [True, False]}, r"TypeError: causal is \[True, False\]; it must be a bool or a tensor"),
        ({"causal": SEES_ALL[:3]}, "ValueError: causal has 3 elements; it must have the 2 of kv_len_arr"),
        ({"causal": SEES_ALL[:2, None]}, r"ValueError: causal has shape \(2, 1\); it must have 1 dimension"),
        ({"causal": int32(1, 0)}, "ValueError: causal has dtype torch.int32; it must be torch.bool"),
        ({"window_left": 5}, "ValueError: window_left has 1 windows; it must have 2, the num_windows"),
        ({"window_left": (1, 2, 3)}, "ValueError: window_left has 3 windows; it must have 2"),
        ({"window_left": []}, "ValueError: window_left has 0 windows; it must have 2"),
        ({"window_left": (5, -2)}, "ValueError: window_left is -2; it must be from -1 to 2147483647"),
        ({"window_left": (2**31, 5)}, "ValueError: window_left is 2147483648; it must be from -1 to"),
        ({"window_left": (5, 1.5)}, "TypeError: window_left is 1.5; it must be an int"),
        ({"window_left": [None, 5]}, "TypeError: window_left is None; it must be an int"),
        ({"logits_soft_cap": -1.0}, "ValueError: logits_soft_cap is -1.0; it must be positive and finite"),
        ({"logits_soft_cap": math.inf}, "ValueError: logits_soft_cap is inf; it must be positive and finite"),
        ({"logits_soft_cap": math.nan}, "ValueError: logits_soft_cap is nan; it must be positive and finite"),
        ({"logits_soft_cap": 1e-50}, "ValueError: logits_soft_cap is 1e-50; .* finite in float32"),
        ({"logits_soft_cap": "30"}, "TypeError: logits_soft_cap is '30'; it must be a float or None"),
        ({"logits_soft_cap": torch.zeros(1)}, "TypeError: logits_soft_cap is a Tensor; it must be a float"),
        ({"logits_soft_cap": torch.zeros(4)}, "TypeError: logits_soft_cap is a Tensor; it must be a float"),
        ({"custom_mask": [True] * 140}, "TypeError: custom_mask is a list; it must be a torch.Tensor"),
        ({"custom_mask": SEES_ALL.byte()}, "ValueError: custom_mask has dtype torch.uint8; .* torch.bool"),
        ({"custom_mask": SEES_ALL[1:]}, "ValueError: custom_mask has 139 elements; it must have 140, qo_len"),
        ({"custom_mask": SEES_ALL[None]}, r"ValueError: custom_mask has shape \(1, 140\); .* 1 dimension"),
        ({"custom_mask": SEES_ALL} | PACKED_MASK, "ValueError: custom_mask and packed_custom_mask are given"),
        ({"custom_mask": SEES_SOME}, "ValueError: custom_mask takes 96 bytes .* at most max_mask_bytes = 95"),
        (
            {"custom_mask": SEES_ALL, "actual_kv_len_arr": int32(40, 20)},
            "ValueError: custom_mask is given with actual_kv_len_arr; lengths must be exact with it",
        ),
        # As many elements as the lengths would have, if there were any of that kind.
        (
            {"custom_mask": SEES_ALL[:119], "kv_len_arr": int32(40, -1)},
            "ValueError: custom_mask has 119 elements; it must have 120",
        ),
        ({"packed_custom_mask": [255] * 18}, "TypeError: packed_custom_mask is a list; it must be a torch"),
        ({"packed_custom_mask": PACKED.bool()}, "ValueError: packed_custom_mask has dtype torch.bool"),
        ({"packed_custom_mask": PACKED[1:]}, "ValueError: packed_custom_mask has 17 bytes; it must have 18"),
        (
            PACKED_MASK | {"mask_indptr": int64(1, 16, 19)},
            "ValueError: packed_custom_mask has 18 bytes; it must have 19",
        ),
        (
            {"mask_indptr": int64(0, 15, 18)},
            "ValueError: mask_indptr is given; .* without a packed_custom_mask",
        ),
        (
            {"custom_mask": SEES_ALL, "mask_indptr": int64(0, 15, 18)},
            "ValueError: mask_indptr is given; it must be None with a custom_mask",
        ),
        (PACKED_MASK | {"mask_indptr": [0, 15, 18]}, "TypeError: mask_indptr is a list; it must be a torch"),
        (PACKED_MASK | {"mask_indptr": int32(0, 15, 18)}, "ValueError: mask_indptr has dtype torch.int32"),
        (PACKED_MASK | {"mask_indptr": int64(0, 15)}, "ValueError: mask_indptr has 2 elements; .* have 3"),
        (
            PACKED_MASK | {"mask_indptr": int64(0, 15, 17)},
            "ValueError: mask_indptr gives request 1 2 bytes from 15, it must be 0, for no mask, or 3",
        ),
        (
            PACKED_MASK | {"mask_indptr": int64(0, 16, 16)},
            "ValueError: mask_indptr gives request 0 16 bytes from 0, it must be 0, for no mask, or 15",
        ),
        (PACKED_MASK | {"mask_indptr": int64(15, 0, 3)}, "ValueError: .* request 0 -15 bytes from 15"),
        (PACKED_MASK | {"mask_indptr": int64(-15, 0, 3)}, "ValueError: .* request 0 15 bytes from -15"),
    ],
)
def test_plan_refuses(changes: dict[str, Any], error: str) -> None:
    """And keeps the last plan of every window."""
    attention = small_attention(num_windows=2, max_mask_bytes=95)
    attention.plan(**masked_plan_arguments())
    before = [run(attention, window=window) for window in range(2)]
    with refused(error):
        attention.plan(**(masked_plan_arguments() | changes))
    for window in range(2):
        assert_same(run(attention, window=window), before[window])


def test_max_mask_bytes() -> None:
    """Of the plan, not of the caller: two tiles of 8 bytes, 16 for each of 4 queries, 16 to align them."""
    with pytest.raises(ValueError, match="max_mask_bytes is 0, it must be more for a custom_mask"):
        small_attention(max_mask_bytes=0).plan(**plan_arguments(), custom_mask=SEES_ALL)
    small_attention(max_mask_bytes=96).plan(**plan_arguments(), custom_mask=SEES_SOME)
    small_attention(max_mask_bytes=0).plan(**plan_arguments(), window_left=3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"logits_soft_cap": 6.0}, "ValueError: logits_soft_cap is 6.0; .* 0.0 or equal the plan's, 5.0"),
        ({"logits_soft_cap": math.nan}, "ValueError: logits_soft_cap is nan; it must be positive and finite"),
        ({"logits_soft_cap": torch.tensor(5.0)}, "TypeError: logits_soft_cap is a Tensor; .* a float"),
        ({"logits_soft_cap": torch.zeros(4)}, "TypeError: logits_soft_cap is a Tensor; it must be a float"),
        ({"window": 2}, "ValueError: window is 2; it must be from 0 to 1"),
        ({"window": -1}, "ValueError: window is -1; it must be from 0 to 1"),
        ({"window": True}, "TypeError: window is True; it must be an int"),
        ({"window": 0.0}, "TypeError: window is 0.0; it must be an int"),
        ({"window": None}, "TypeError: window is None; it must be an int"),
        ({"sinks": [0.0] * 4}, "TypeError: sinks is a list; it must be a torch.Tensor"),
        ({"sinks": torch.zeros(3)}, r"ValueError: sinks has shape \(3,\); it must be \[4\]: num_qo_heads"),
        ({"sinks": torch.zeros(1, 4)}, r"ValueError: sinks has shape \(1, 4\); it must have 1 dimension"),
        (
            {"sinks": torch.zeros(4).bfloat16()},
            "ValueError: sinks has dtype torch.bfloat16; .* torch.float32",
        ),
        ({"sinks": torch.zeros(8)[::2]}, r"ValueError: sinks has strides \(2,\); it must be contiguous"),
        ({"sinks": torch.zeros(4, device="meta")}, "ValueError: sinks is on device meta; it must be on cpu"),
        ({"natural_lse": 1}, "TypeError: natural_lse is 1; it must be a bool"),
    ],
)
def test_run_refuses(options: dict[str, Any], error: str) -> None:
    """Before anything is written."""
    attention = small_attention(num_windows=2)
    attention.plan(**masked_plan_arguments())
    arguments = run_arguments()
    with refused(error):
        attention.run(**arguments, **options)
    assert bool(arguments["out"].isnan().all() and arguments["lse"].isnan().all()), "something was written"


@pytest.mark.parametrize("is_compiled", [False, True])
def test_sinks_that_require_grad_are_refused(is_compiled: bool) -> None:
    """As all tensors of a run are, and in grad mode only: those of a model are parameters."""
    torch._dynamo.reset()
    attention = small_attention()
    attention.plan(**plan_arguments())
    arguments, sinks = random_run_arguments(), torch.zeros(4, requires_grad=True)

    def run(q: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return attention.run(q, arguments["kv_cache"], sinks=sinks)[0]

    function = torch.compile(run, fullgraph=True, backend="aot_eager") if is_compiled else run
    with torch.enable_grad(), pytest.raises(RuntimeError, match="sinks requires grad; onewave is for"):
        function(arguments["q"], sinks)
    with torch.no_grad():
        function(arguments["q"], sinks)


def test_the_plans_soft_cap_may_be_said_again() -> None:
    attention = small_attention(num_windows=2)
    attention.plan(**masked_plan_arguments())
    capped = run(attention)
    for same in (0.0, 5.0, 5, None):
        assert_same(run(attention, logits_soft_cap=same), capped)
    attention.plan(**(masked_plan_arguments() | {"logits_soft_cap": 0}))
    uncapped = run(attention)
    assert not torch.equal(uncapped[0], capped[0])
    attention.plan(**(masked_plan_arguments() | {"logits_soft_cap": None}))
    assert_same(run(attention, logits_soft_cap=0.0), uncapped)
    with pytest.raises(ValueError, match="logits_soft_cap is 5.0; it must be 0.0 or equal the plan's, 0.0"):
        run(attention, logits_soft_cap=5.0)


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
    return torch.tensor(packed, dtype=torch.uint8), int64(*indptr)


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


class SinkLayer(torch.nn.Module):
    def __init__(self, attention: onewave.BatchAttention) -> None:
        super().__init__()
        self.attention = attention
        self.sinks = torch.nn.Parameter(torch.linspace(-1, 4, 4))

    def forward(self, q: torch.Tensor, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.attention.run(q, kv_cache, window=1, sinks=self.sinks, natural_lse=True)


@torch.no_grad()
def test_masks_in_a_compiled_graph() -> None:
    """One for every plan."""
    torch._dynamo.reset()
    attention = small_attention(num_windows=2)
    layer = SinkLayer(attention)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    arguments = random_run_arguments()
    seen: list[torch.Tensor] = []
    changes_of_plans: list[dict[str, Any]] = [
        {},
        {"window_left": (-1, 0)},
        {"logits_soft_cap": 0.5},
        {"window_left": (5, -1), "custom_mask": SEES_SOME},
    ]
    for i, changes in enumerate(changes_of_plans):
        attention.plan(**(masked_plan_arguments() | changes))
        expected = layer(arguments["q"], arguments["kv_cache"])
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            assert_same(compiled(arguments["q"], arguments["kv_cache"]), expected)
        assert not any(torch.equal(expected[0], other) for other in seen)
        seen.append(expected[0])


# What the plan of a capture has, the arguments of its run, and what a later plan has.
GRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no masks, then a window": ({}, {}, {"window_left": (5, -1)}),
    "no masks, then a soft cap": ({}, {}, {"logits_soft_cap": 5.0}),
    "no masks, then a custom mask": ({}, {}, {"custom_mask": SEES_SOME}),
    "a window in the other layers": ({"window_left": (-1, 5)}, {}, {"window_left": (3, 5)}),
    "a mask that hides all": ({"custom_mask": ~SEES_ALL}, {}, {"custom_mask": SEES_SOME}),
}
# Of those the later plan is never refused.
KEPT_GRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no masks at all": ({}, {}, {"causal": torch.tensor([True, False])}),
    "sinks": ({}, {"sinks": torch.zeros(4)}, {"window_left": (5, 5), "logits_soft_cap": 5.0}),
    "another window": ({"window_left": (5, 5)}, {}, {"window_left": (0, 9), "custom_mask": SEES_SOME}),
    "another window of the same layers": ({"window_left": (-1, 5)}, {}, {"window_left": (-1, 9)}),
    "another window of those layers": ({"window_left": (-1, 5)}, {"window": 1}, {"window_left": (-1, 9)}),
    "no window": ({"window_left": (5, 5)}, {}, {}),
}


@pytest.mark.parametrize("name", [*GRAPHS, *KEPT_GRAPHS])
def test_a_captured_kernel_sees_what_a_later_plan_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the plan is refused. By the rule of cpp/launch.cpp: a run of a plan that says is_masked, or one
    with sinks, takes the kernel that looks at masks; others do not."""
    captured, options, later = (GRAPHS | KEPT_GRAPHS)[name]
    attention = small_attention(num_windows=2)
    unmasked = plan_arguments() | {"window_left": (-1, -1)}

    def needs_masked_kernel() -> bool:
        return bool(Plan(attention.plan_bytes(options.get("window", 0))).header["is_masked"])

    attention.plan(**(unmasked | captured))
    with monkeypatch.context() as capture:
        capture.setattr("onewave.attention.is_capturing", lambda device: True)
        run(attention, **options)
    sees_masks = needs_masked_kernel() or "sinks" in options
    try:
        attention.plan(**(unmasked | later))
    except RuntimeError as error:
        assert "run() was captured in a CUDA graph" in str(error) and name in GRAPHS
    assert sees_masks or not needs_masked_kernel()


@pytest.mark.gpu
@pytest.mark.parametrize("has_sinks", [False, True])
def test_a_graph_sees_the_masks_of_a_later_plan_or_refuses_it(has_sinks: bool, seed: int) -> None:
    """A plan without masks takes a kernel that looks at none, which the graph has then; not so with sinks."""
    heads = Heads(2, 4, 128)
    batch = DenseBatch([Lens(900, 1, 4), Lens(300, 70)], heads, torch.bfloat16, seed)
    paged, outputs = batch.paged(PAGE_SIZE), Outputs(batch)
    sinks = torch.linspace(-1, 4, heads.num_qo_heads, device="cuda") if has_sinks else None
    attention = make_attention(batch)
    plan(attention, batch, paged, PAGE_SIZE, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse, sinks=sinks)

    def check_replay(masks: Masks) -> None:
        outputs.poison()
        graph.replay()
        outputs.check(batch.expected(masks))

    check_replay(Masks(True, sinks=sinks))
    for options, masks in (
        ({"window_left": 5}, Masks(True, window_left=5, sinks=sinks)),
        ({"logits_soft_cap": 2.0}, Masks(True, soft_cap=2.0, sinks=sinks)),
    ):
        if has_sinks:
            plan(attention, batch, paged, PAGE_SIZE, True, **options)
            check_replay(masks)
        else:
            with pytest.raises(RuntimeError, match="the plan has a window.*captured"):
                plan(attention, batch, paged, PAGE_SIZE, True, **options)
            check_replay(Masks(True))
