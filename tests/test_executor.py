"""The CPU executor against float64: every mask, group size, page size, stride form, type and empty case."""

import math
import threading
import time
from dataclasses import replace

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Masks, Paged
from gpu_checks import NUM_EXTRA_ROWS, UNTOUCHED, Outputs, make_attention, plan, run_twice
from onewave.plan_format import Plan
from plan_checks import check_splits_both_kinds
from reference import Reference, attend, check_against, reference

# The long requests are split, there being more CTAs than units; short and empty ones are every corner of the masks.
NUM_CTAS = 132
MIXED = [
    Lens(4000, 1),
    Lens(2000, 70),
    Lens(700, 1, 3),
    Lens(300, 3, 2),
    Lens(260, 70),
    Lens(129, 129),
    Lens(5, 9),
    Lens(33, 0),
    Lens(0, 4),
    Lens(0, 0),
    Lens(1, 1),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run_planned(
    attention: onewave.BatchAttention, batch: DenseBatch, paged: Paged, **options: float | torch.Tensor | None
) -> Outputs:
    """Runs twice into poisoned outputs; the two must agree to the bit."""
    outputs = Outputs(batch, num_extra_rows=min(batch.total_qo_len, NUM_EXTRA_ROWS))
    run_twice(attention, outputs, paged, **options)
    return outputs


def check_outputs(outputs: Outputs, batch: DenseBatch, masks: bool | Masks, **scales: float) -> None:
    num_rows = outputs.num_rows
    assert bool((outputs.out[num_rows:] == UNTOUCHED).all()), "out: rows beyond the batch were written"
    assert bool((outputs.lse[num_rows:] == UNTOUCHED).all()), "lse: rows beyond the batch were written"
    check_against(reference(batch, masks, **scales), outputs.out[:num_rows], outputs.lse[:num_rows])


def run_and_check(batch: DenseBatch, page_size: int, causal: bool, layout: str = "NHD") -> None:
    attention = make_attention(batch, "HND" if layout == "HND" else "NHD", NUM_CTAS)
    paged = batch.paged(page_size, layout)
    plan(attention, batch, paged, page_size, causal)
    if batch.lens is MIXED:
        assert num_split_tiles(attention) > 0, "the merge would go untested"
    check_outputs(run_planned(attention, batch, paged), batch, causal)


def num_split_tiles(attention: onewave.BatchAttention) -> int:
    return len(Plan(attention.plan_bytes()).split_tiles)


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("group_size", [1, 4, 7, 8, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_group_sizes_and_page_sizes(causal: bool, group_size: int, page_size: int, seed: int) -> None:
    num_kv_heads = 1 if group_size == 64 else 2
    batch = DenseBatch(MIXED, Heads(num_kv_heads, group_size, 64), torch.bfloat16, seed, "cpu")
    run_and_check(batch, page_size, causal)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NHD", "HND", "pair", "strided"])
def test_layouts_and_types(layout: str, dtype: torch.dtype, head_dim: int, seed: int) -> None:
    run_and_check(DenseBatch(MIXED, Heads(3, 4, head_dim), dtype, seed, "cpu"), 16, True, layout)


@pytest.mark.parametrize("lens", [[Lens(0, 0)], [Lens(0, 5)], [Lens(9, 0, 3)], [Lens(2, 235), Lens(1, 300)]])
@pytest.mark.parametrize("causal", [False, True])
def test_batches_that_see_little(lens: list[Lens], causal: bool, seed: int) -> None:
    run_and_check(DenseBatch(lens, Heads(2, 4, 64), torch.float32, seed, "cpu"), 4, causal)


def test_empty_batch() -> None:
    attention = onewave.BatchAttention(device="cpu")
    no_lengths = torch.zeros(0, dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    attention.plan(zero, zero, no_lengths, no_lengths, 4, 2, 64, 64, 16)
    out, lse = attention.run(torch.zeros(0, 4, 64).bfloat16(), torch.zeros(0, 2, 16, 2, 64).bfloat16())
    assert out.shape == (0, 4, 64) and lse.shape == (0, 4)


@pytest.mark.parametrize("num_ctas", [1, 2, 132, 1024])
def test_any_number_of_ctas(num_ctas: int, seed: int) -> None:
    batch = DenseBatch([Lens(3000, 1, 2), Lens(900, 50)], Heads(2, 4, 64), torch.float32, seed, "cpu")
    attention, paged = make_attention(batch, num_ctas=num_ctas), batch.paged(16)
    plan(attention, batch, paged, 16, True)
    check_outputs(run_planned(attention, batch, paged), batch, True)


def test_strided_queries_and_outputs(seed: int) -> None:
    """Queries as the first heads of a fused projection, outputs as every other head of a wider tensor."""
    batch = DenseBatch(MIXED, Heads(2, 4, 64), torch.float32, seed, "cpu")
    attention, paged = make_attention(batch, num_ctas=NUM_CTAS), batch.paged(16)
    plan(attention, batch, paged, 16, True)
    outputs = Outputs(batch)
    num_rows, num_heads, head_dim = outputs.q.shape
    fused = torch.full((num_rows, 3 * num_heads, head_dim), math.nan)
    fused[:, :num_heads] = outputs.q
    wide = torch.full((num_rows, 2 * num_heads, head_dim + 4), UNTOUCHED)
    outputs.q, outputs.out = fused[:, :num_heads], wide[:, ::2, 4:]
    outputs.poison()
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    check_outputs(outputs, batch, True)
    assert bool((wide[:, 1::2] == UNTOUCHED).all() and (wide[..., :4] == UNTOUCHED).all())


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_scales(kind: type, seed: int) -> None:
    batch = DenseBatch(MIXED, Heads(2, 4, 64), torch.float32, seed, "cpu")
    attention, paged = make_attention(batch, num_ctas=NUM_CTAS), batch.paged(16)
    plan(attention, batch, paged, 16, True)
    assert num_split_tiles(attention) > 0, "v_scale of partials would go untested"
    outputs = run_planned(attention, batch, paged, k_scale=kind(0.25), v_scale=kind(1.75))
    check_outputs(outputs, batch, True, k_scale=0.25, v_scale=1.75)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number(dtype: torch.dtype) -> None:
    """One key a request hands its value through, scaled: all bit patterns are read and rounded as torch does."""
    head_dim, num_requests = 128, 65536 // 128
    values = torch.arange(65536).to(torch.int16).view(dtype).view(num_requests, 1, 1, head_dim)
    indptr = torch.arange(num_requests + 1, dtype=torch.int32)
    attention = onewave.BatchAttention(device="cpu")
    attention.plan(
        indptr,
        indptr,
        indptr[:-1],
        torch.ones(num_requests, dtype=torch.int32),
        *(1, 1, head_dim, head_dim, 1),
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    q = torch.zeros(num_requests, 1, head_dim, dtype=dtype)
    for v_scale in (1.0, 1 / 3, 2.0**-9 / 3, 300.0):
        out, _ = attention.run(q, (torch.zeros_like(values), values), v_scale=v_scale)
        expected = (values.float() * torch.tensor(v_scale)).to(dtype).view_as(out)
        same = (out == expected) | (out.isnan() & expected.isnan())
        assert bool(same.all()), f"{values.view_as(out)[~same][0]} * {v_scale}: {out[~same][0]}"


@pytest.fixture
def planned(seed: int) -> tuple[onewave.BatchAttention, DenseBatch, Paged]:
    """A plan with splits of both kinds of item."""
    batch = DenseBatch(
        [Lens(5000, 1), Lens(6000, 100), Lens(300, 2, 4)], Heads(2, 4, 64), torch.float32, seed, "cpu"
    )
    attention, paged = make_attention(batch, num_ctas=33), batch.paged(16)
    plan(attention, batch, paged, 16, True)
    check_splits_both_kinds(Plan(attention.plan_bytes()))
    return attention, batch, paged


def test_each_item_is_the_only_source_of_its_output(
    planned: tuple[onewave.BatchAttention, DenseBatch, Paged],
) -> None:
    """The last narrow item of any CTA, and the last wide one, taken away, leave rows of the poisoned output as they
    were."""
    attention, batch, paged = planned
    whole = attention.plan_bytes()
    check_outputs(run_with(attention, whole, batch, paged), batch, True)

    def check_hole(shortened: Plan, missing: str) -> None:
        out = run_with(attention, shortened.to_bytes(), batch, paged).out
        assert bool(out[: batch.total_qo_len].isnan().any()), f"written without {missing}"

    num_narrow = 0
    for cta, record in enumerate(Plan(whole).ctas):
        if record["narrow_begin"] < record["narrow_end"]:
            shortened = Plan(whole)
            shortened.ctas[cta]["narrow_end"] -= 1
            check_hole(shortened, f"the last narrow item of CTA {cta}")
            num_narrow += 1
    assert num_narrow > 0 and len(Plan(whole).wide_items) > 0
    shortened = Plan(whole)
    shortened.header["num_items"] -= 1
    check_hole(shortened, "the last wide item")


def test_each_merge_record_is_needed(planned: tuple[onewave.BatchAttention, DenseBatch, Paged]) -> None:
    attention, batch, paged = planned
    whole = attention.plan_bytes()
    shortened = Plan(whole)
    assert len(shortened.split_tiles) > 0
    tile = shortened.split_tiles[-1]
    shortened.header["num_split_tiles"] -= 1
    out = run_with(attention, shortened.to_bytes(), batch, paged).out
    first_token = tile["q_token_begin"] + tile["row_begin"] // batch.heads.group_size
    first_head = tile["kv_head_begin"] * batch.heads.group_size + tile["row_begin"] % batch.heads.group_size
    assert bool(out[first_token, first_head].isnan().all()), "merged without a record"


def test_bytes_that_are_no_plan_are_refused(
    planned: tuple[onewave.BatchAttention, DenseBatch, Paged],
) -> None:
    attention, batch, paged = planned
    whole = attention.plan_bytes()
    no_plans = [(b"", "0 bytes"), (whole[:-1], "not a whole plan")]
    for field, message in (("magic", "not a whole plan"), ("version", "version 99, it must be 9")):
        altered = Plan(whole)
        altered.header[field] = 99
        no_plans.append((altered.to_bytes(), message))
    for no_plan, message in no_plans:
        with pytest.raises(ValueError, match=message):
            run_with(attention, no_plan, batch, paged)


def test_other_threads_run_meanwhile(seed: int) -> None:
    batch = DenseBatch([Lens(2000, 2000)], Heads(1, 8, 64), torch.float32, seed, "cpu")
    attention, paged = make_attention(batch), batch.paged(16)
    plan(attention, batch, paged, 16, False)
    worker = threading.Thread(target=attention.run, args=(batch.q, paged.kv_cache))
    worker.start()
    num_turns = 0
    while worker.is_alive():
        time.sleep(1e-3)
        num_turns += 1
    assert num_turns > 5


def test_splits_are_merged_in_the_order_of_the_plan() -> None:
    """Each split is one dominant key, so that the merge adds the values of these: large, large and -large overflow in
    this order only."""
    batch = DenseBatch([Lens(6000, 1)], Heads(1, 1, 64), torch.float32, seed=1, device="cpu")
    attention = make_attention(batch, num_ctas=4)
    plan(attention, batch, batch.paged(16), 16, True)
    splits = Plan(attention.plan_bytes()).items
    splits = splits[splits["split_idx"].argsort()]
    assert len(splits) >= 3 and (splits["split_tile"] == 0).all()
    batch.q.fill_(1)
    batch.k[0].zero_()
    batch.v[0].zero_()
    for split, large in zip(splits, (3e38, 3e38, -3e38, *[0.0] * len(splits)), strict=False):
        batch.k[0][0, split["kv_begin"]] = 100
        batch.v[0][0, split["kv_begin"]] = large
    paged = batch.paged(16)
    plan(attention, batch, paged, 16, True)
    out, _ = attention.run(batch.q, paged.kv_cache)
    assert bool(out.isposinf().all())


def test_a_merge_record_may_have_several_kv_heads(seed: int) -> None:
    """As the format allows: the plan of one kv head, its records widened to three."""
    num_kv_heads = 3
    wide = DenseBatch(
        [Lens(9000, 1, 2), Lens(2000, 100)], Heads(num_kv_heads, 4, 64), torch.float32, seed, "cpu"
    )
    narrow = DenseBatch(wide.lens, Heads(1, 4, 64), torch.float32, seed, "cpu")
    paged = wide.paged(16)
    # It owns the page ids that the widened plan points to.
    source = make_attention(narrow, num_ctas=24)
    plan(source, narrow, paged, 16, True)
    widened = Plan(source.plan_bytes())
    assert len(widened.split_tiles) > 1
    widened.items["kv_head_end"] = widened.split_tiles["kv_head_end"] = num_kv_heads
    widened.items["heads_per_step"] = num_kv_heads
    widened.split_tiles["partial_row_begin"] *= num_kv_heads
    for field in ("num_qo_heads", "num_kv_heads", "num_partial_rows"):
        widened.header[field] *= num_kv_heads
    attention = make_attention(wide, num_ctas=NUM_CTAS)
    plan(attention, wide, paged, 16, True)
    check_outputs(run_with(attention, widened.to_bytes(), wide, paged), wide, True)


def test_pages_may_begin_late_in_the_table(seed: int) -> None:
    """kv_indptr[0] need not be 0: an engine's table may have other requests' pages before."""
    batch = DenseBatch([Lens(300, 2), Lens(40, 1)], Heads(1, 2, 64), torch.float32, seed, "cpu")
    attention, paged = make_attention(batch), batch.paged(16)
    others = torch.zeros(5, dtype=torch.int32)
    kv_indices = torch.cat([others, paged.kv_indices])
    shifted = replace(paged, kv_indptr=paged.kv_indptr + len(others), kv_indices=kv_indices)
    plan(attention, batch, shifted, 16, True)
    check_outputs(run_planned(attention, batch, shifted), batch, True)


def test_page_ids_on_the_host_are_copied(seed: int) -> None:
    """They were checked in plan(): what the caller makes of them later is not read."""
    batch = DenseBatch([Lens(300, 20)], Heads(1, 2, 64), torch.float32, seed, "cpu")
    attention, paged = make_attention(batch), batch.paged(16)
    plan(attention, batch, paged, 16, True)
    paged.kv_indices.fill_(-1)
    check_outputs(run_planned(attention, batch, paged), batch, True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("head_dim_qk", "head_dim_vo"), [(96, 96), (192, 128), (256, 256), (64, 160)])
def test_any_head_dims(head_dim_qk: int, head_dim_vo: int, causal: bool, seed: int) -> None:
    """Of a (k, v) pair; tiles and splits of both kinds, on few CTAs."""
    generator = torch.Generator().manual_seed(seed)
    lens = [(700, 1), (300, 90), (45, 3)]

    def rows(num_rows: int, num_heads: int, head_dim: int) -> torch.Tensor:
        return torch.randn(num_rows, num_heads, head_dim, generator=generator)

    q = rows(sum(qo_len for _, qo_len in lens), 4, head_dim_qk)
    pages = [-(-kv_len // 16) for kv_len, _ in lens]
    k, v = (rows(sum(pages) * 16, 2, head_dim) for head_dim in (head_dim_qk, head_dim_vo))
    attention = onewave.BatchAttention(device="cpu", num_ctas=5)
    attention.plan(
        torch.tensor([0, *(qo_len for _, qo_len in lens)]).cumsum(0).int(),
        torch.tensor([0, *pages]).cumsum(0).int(),
        torch.arange(sum(pages), dtype=torch.int32),
        torch.tensor([kv_len for kv_len, _ in lens], dtype=torch.int32),
        *(4, 2, head_dim_qk, head_dim_vo, 16),
        causal=causal,
        q_data_type=torch.float32,
        kv_data_type=torch.float32,
    )
    out, lse = attention.run(q, (k.unflatten(0, (-1, 16)), v.unflatten(0, (-1, 16))))
    assert out.shape == (*q.shape[:2], head_dim_vo) and lse is not None
    token, key = 0, 0
    for (kv_len, qo_len), num_pages in zip(lens, pages, strict=True):
        keys = slice(key, key + kv_len)
        expected_out, expected_lse = attend(
            q[token : token + qo_len].transpose(0, 1).double(),
            *(x[keys].repeat_interleave(2, dim=1).transpose(0, 1).double() for x in (k, v)),
            causal,
            1 / math.sqrt(head_dim_qk),
        )
        expected = Reference(expected_out.transpose(0, 1), expected_lse.T)
        check_against(expected, out[token : token + qo_len], lse[token : token + qo_len])
        token, key = token + qo_len, key + 16 * num_pages


def test_one_tensor_has_one_head_dim(seed: int) -> None:
    attention = onewave.BatchAttention(device="cpu")
    indptr, lens = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    attention.plan(indptr, indptr, torch.zeros(1, dtype=torch.int32), lens, 1, 1, 192, 128, 16)
    q = torch.zeros(1, 1, 192, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"kv_cache is one tensor; it must be a \(k, v\) pair"):
        attention.run(q, torch.zeros(1, 2, 16, 1, 192, dtype=torch.bfloat16))


def run_with(
    attention: onewave.BatchAttention, plan_bytes: bytes, batch: DenseBatch, paged: Paged
) -> Outputs:
    """A run of other bytes than those that the planner wrote."""
    attention._engine._updated_plans = [plan_bytes]
    outputs = Outputs(batch)
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    return outputs


def test_keys_that_a_row_does_not_see_may_be_nan(seed: int) -> None:
    """Of the same request, and in the same tile: the masks do not multiply by 0."""
    batch = DenseBatch([Lens(200, 20)], Heads(1, 2, 64), torch.float32, seed, "cpu")
    expected = reference(batch, True)
    for dense in (batch.k[0], batch.v[0]):
        dense[:, -1] = math.nan
    attention, paged = make_attention(batch, num_ctas=1), batch.paged(16)
    plan(attention, batch, paged, 16, True)
    out, lse = attention.run(batch.q, paged.kv_cache)
    # Only the last query sees the last key.
    check_against(type(expected)(expected.out[:-1], expected.lse[:-1]), out[:-1], lse[:-1])
    assert bool(out[-1].isnan().all())
