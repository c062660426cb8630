"""A small mixed batch for compute-sanitizer: splits and merges, both kinds of item, both loaders, both head_dims; fixed
splits planned from bounds, an append and a merge of states.

All is made on the host and copied, and results are copied back and checked there: no kernel but ours runs, so initcheck,
which sees only the writes of kernels that it instruments, knows what is written, and finds an output row that is not.

Run under the tool, with `tests` in PYTHONPATH. Ends with status 0 when every output is right."""

import itertools

import onewave
import torch
from dense_batch import FP8, DenseBatch, Expected, Heads, Lens, Masks, Paged, as_scale_argument
from gpu_checks import as_block_table, check_lse, check_out, plan
from onewave.plan_format import Plan
from plan_checks import CALIBRATION_FILE, check_splits_both_kinds

# On 48 CTAs the first and the last are split, on 2 there are more wide items than a CTA has slots for; an instrumented
# kernel is slow, so no more than needed.
LENS = [Lens(2500, 1, 2), Lens(300, 3), Lens(260, 150), Lens(0, 2), Lens(2500, 40)]
NUMS_CTAS = (48, 2)
LIMITS = {"max_batch_size": 8, "max_total_qo_len": 256, "max_kv_len": 8192}


def run(
    attention: onewave.BatchAttention,
    batch: DenseBatch,
    paged: Paged,
    expected: Expected,
    **tensors: torch.Tensor | None,
) -> None:
    """Outputs of its own, which nothing has written to."""
    assert isinstance(paged.kv_cache, torch.Tensor)
    q = batch.q.cuda()
    out, lse = torch.empty_like(q, dtype=batch.out_dtype), torch.empty(q.shape[:2], device="cuda")
    on_device = {name: None if tensor is None else tensor.cuda() for name, tensor in tensors.items()}
    attention.run(q, paged.kv_cache.cuda(), out=out, lse=lse, **on_device)
    check_out(out.cpu(), expected)
    check_lse(lse.cpu(), expected.lse, expected.lse_bound)


def run_mixed_batches() -> None:
    for head_dim, page_size, dtype in itertools.product((64, 128), (1, 16), (torch.bfloat16, torch.float16)):
        batch = DenseBatch(LENS, Heads(2, 4, head_dim), dtype, head_dim + page_size, "cpu")
        paged = batch.paged(page_size)
        expected = {causal: batch.expected(causal) for causal in (False, True)}
        for num_ctas, causal in itertools.product(NUMS_CTAS, (False, True)):
            attention = onewave.BatchAttention(**LIMITS, num_ctas=num_ctas, calibration=CALIBRATION_FILE)
            plan(attention, batch, paged, page_size, causal)
            if num_ctas == max(NUMS_CTAS):
                check_splits_both_kinds(Plan(attention.plan_bytes()))
            run(attention, batch, paged, expected[causal])
            print(f"{head_dim=} {page_size=} {dtype} {num_ctas=} {causal=}: right", flush=True)


def run_from_bounds() -> None:
    """Chunks and whole items for which no key is left; a block table without pages for them."""
    for head_dim, page_size in itertools.product((64, 128), (1, 16)):
        batch = DenseBatch(LENS, Heads(2, 4, head_dim), torch.bfloat16, head_dim + page_size, "cpu")
        paged = batch.paged(page_size)
        bounds = paged.kv_len_arr * 2 + 3000
        attention = onewave.BatchAttention(**LIMITS, num_ctas=24, split_policy="fixed")
        attention.plan(
            *(paged.qo_indptr, None, None, bounds, 8, 2, head_dim, head_dim, page_size),
            causal=True,
            block_table=as_block_table(paged, -(-int(bounds.max()) // page_size)).cuda(),
            actual_kv_len_arr=paged.kv_len_arr.cuda(),
        )
        run(attention, batch, paged, batch.expected(True))
        print(f"{head_dim=} {page_size=} from bounds: right", flush=True)


def run_masks() -> None:
    """The kernels that look at them, and those of the other head_dims: windows and caps, and custom masks with sinks."""
    generator = torch.Generator().manual_seed(5)
    for head_dim, page_size in itertools.product((64, 96, 128, 256), (1, 16)):
        batch = DenseBatch(LENS, Heads(2, 4, head_dim), torch.bfloat16, head_dim + page_size, "cpu")
        paged = batch.paged(page_size)
        custom = [torch.rand(r.qo_len, r.kv_len, generator=generator) < 0.5 for r in batch.requests()]
        custom[0][:, :1000] = False
        bits = torch.cat([mask.flatten() for mask in custom])
        sinks = torch.randn(8, generator=generator)
        attention = onewave.BatchAttention(**LIMITS, num_ctas=24, calibration=CALIBRATION_FILE)
        plan(attention, batch, paged, page_size, True, window_left=200, logits_soft_cap=2.0)
        run(attention, batch, paged, batch.expected(Masks(True, 200, 2.0)))
        plan(attention, batch, paged, page_size, True, custom_mask=bits)
        run(
            attention,
            batch,
            paged,
            batch.expected(Masks(True, sinks=sinks, custom=list(custom))),
            sinks=sinks,
        )
        plan(attention, batch, paged, page_size, True)
        run(attention, batch, paged, batch.expected(True))
        print(f"{head_dim=} {page_size=} masks: right", flush=True)


def run_fp8() -> None:
    """A cache of fp8, and queries: both loaders, a factor for each kv head and for groups of tokens."""
    for dtype, head_dim, page_size in itertools.product((torch.bfloat16, FP8), (64, 128, 256), (1, 16)):
        batch = DenseBatch(LENS, Heads(2, 4, head_dim), dtype, head_dim + page_size, "cpu", FP8)
        paged = batch.paged(page_size)
        attention = onewave.BatchAttention(**LIMITS, num_ctas=24, calibration=CALIBRATION_FILE)
        plan(attention, batch, paged, page_size, True)
        has_group_scales = dtype != FP8 and head_dim <= 128
        for form in ("head", page_size) if has_group_scales else ("head",):
            scales = [batch.draw_scale(form, paged, page_size) for _ in range(2)]
            expected = batch.dequantised(*scales).expected(True)
            k_scale, v_scale = (as_scale_argument(form, scale) for scale in scales)
            run(attention, batch, paged, expected, k_scale=k_scale, v_scale=v_scale)
            print(f"{head_dim=} {page_size=} {dtype} beside fp8, scales {form}: right", flush=True)


def run_profiled() -> None:
    """Into buffers that the host has cleared, with and without room for all items of a CTA."""
    for head_dim, page_size, dtype in itertools.product((64, 128, 256), (1, 16), (torch.bfloat16, FP8)):
        if dtype == FP8 and head_dim == 256:  # there is none
            continue
        batch = DenseBatch(
            LENS, Heads(2, 4, head_dim), dtype, head_dim + page_size, "cpu", FP8 if dtype == FP8 else None
        )
        paged = batch.paged(page_size)
        expected = (batch.dequantised() if dtype == FP8 else batch).expected(True)
        attention = onewave.BatchAttention(
            **LIMITS, num_ctas=4, calibration=CALIBRATION_FILE, max_profiled_runs=1, max_profiled_items=1
        )
        plan(attention, batch, paged, page_size, True, use_profiler=True)
        recorded = []
        for max_items in (128, 1):
            num_bytes = attention.profiler_buffer_size(max_items)
            buffer = torch.zeros(num_bytes, dtype=torch.uint8).cuda()
            run(attention, batch, paged, expected, profiler_buffer=buffer)
            recorded += attention.trace(buffer).runs
        whole, part = recorded
        assert whole.items and whole.num_lost == 0
        assert len(part.items) + part.num_lost == len(whole.items) and part.num_lost > 0
        print(f"{head_dim=} {page_size=} {dtype} profiled: right", flush=True)


def run_row_kernels() -> None:
    keys, values = (torch.randn(20, 2, 128, dtype=torch.bfloat16) for _ in range(2))
    cache = torch.zeros(4, 2, 16, 2, 128, dtype=torch.bfloat16).cuda()
    indices = {
        "batch": [0] * 18 + [1, -1],
        "positions": [*range(18), 3, 0],
        "pages": [2, 0, 3],
        "indptr": [0, 2, 3],
        "last_page_len": [2, 4],
    }
    batch, positions, *tables = (torch.tensor(values).int().cuda() for values in indices.values())
    onewave.append_paged_kv_cache(keys.cuda(), values.cuda(), batch, positions, cache, *tables)
    written = cache.cpu()
    assert torch.equal(written[2, 0], keys[:16]) and torch.equal(written[0, 1, :2], values[16:18])
    assert torch.equal(written[3, 0, 3], keys[18])
    states = torch.randn(5, 3, 4, 128, dtype=torch.bfloat16)
    merged, lse = onewave.merge_states(states.cuda(), torch.zeros(5, 3, 4).cuda())
    torch.testing.assert_close(merged.cpu().float(), states.float().mean(1), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(lse.cpu(), torch.full(lse.shape, 3.0).log2())
    print("append and merge: right", flush=True)


if __name__ == "__main__":
    run_mixed_batches()
    run_from_bounds()
    run_masks()
    run_fp8()
    run_profiled()
    run_row_kernels()
