"""A small mixed batch for compute-sanitizer: splits and merges, both kinds of item, both loaders, both head_dims; fixed
splits planned from bounds, an append and a merge of states.

Run under the tool, with `tests` in PYTHONPATH. Ends with status 0 when every output is right."""

import itertools

import onewave
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import Outputs, as_block_table, check_out, make_attention, plan
from onewave.plan_format import Plan
from plan_checks import check_splits_both_kinds

# On 48 CTAs the first and the last are split, on 2 there are more wide items than a CTA has slots for; an instrumented
# kernel is slow, so no more than needed.
LENS = [Lens(2500, 1, 2), Lens(300, 3), Lens(260, 150), Lens(0, 2), Lens(2500, 40)]
NUMS_CTAS = (48, 2)


def main() -> None:
    for head_dim, page_size, dtype in itertools.product((64, 128), (1, 16), (torch.bfloat16, torch.float16)):
        batch = DenseBatch(LENS, Heads(2, 4, head_dim), dtype, seed=head_dim + page_size)
        paged = batch.paged(page_size)
        outputs = Outputs(batch)
        for num_ctas, causal in itertools.product(NUMS_CTAS, (False, True)):
            attention = make_attention(batch, num_ctas=num_ctas)
            plan(attention, batch, paged, page_size, causal)
            if num_ctas == max(NUMS_CTAS):
                check_splits_both_kinds(Plan(attention.plan_bytes()))
            outputs.poison()
            attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
            outputs.check(batch.expected(causal))
            print(f"{head_dim=} {page_size=} {dtype} {num_ctas=} {causal=}: right", flush=True)


def run_from_bounds() -> None:
    """Chunks and whole items for which no key is left, a block table, no lse."""
    for head_dim, page_size in itertools.product((64, 128), (1, 16)):
        batch = DenseBatch(LENS, Heads(2, 4, head_dim), torch.bfloat16, seed=head_dim + page_size)
        paged = batch.paged(page_size)
        bounds = paged.kv_len_arr * 2 + 3000
        attention = onewave.BatchAttention(
            max_batch_size=8, max_total_qo_len=256, max_kv_len=8192, num_ctas=24, split_policy="fixed"
        )
        attention.plan(
            paged.qo_indptr,
            None,
            None,
            bounds,
            *(8, 2, head_dim, head_dim, page_size),
            causal=True,
            block_table=as_block_table(paged, -(-int(bounds.max()) // page_size)),
            actual_kv_len_arr=paged.kv_len_arr.cuda(),
        )
        outputs = Outputs(batch)
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, return_lse=False)
        expected = batch.expected(True)
        check_out(outputs.out[: outputs.num_rows], expected)
        print(f"{head_dim=} {page_size=} from bounds: right", flush=True)


def run_row_kernels() -> None:
    keys, values = (torch.randn(20, 2, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    cache = torch.zeros(4, 2, 16, 2, 128, dtype=torch.bfloat16, device="cuda")
    indices = {
        "batch": [0] * 18 + [1, -1],
        "positions": [*range(18), 3, 0],
        "pages": [2, 0, 3],
        "indptr": [0, 2, 3],
    }
    batch, positions, pages, indptr = (
        torch.tensor(values, dtype=torch.int32, device="cuda") for values in indices.values()
    )
    last_page_len = torch.tensor([2, 4], dtype=torch.int32, device="cuda")
    onewave.append_paged_kv_cache(keys, values, batch, positions, cache, pages, indptr, last_page_len)
    assert torch.equal(cache[2, 0], keys[:16]) and torch.equal(cache[0, 1, :2], values[16:18])
    assert torch.equal(cache[3, 0, 3], keys[18])
    states = torch.randn(5, 3, 4, 128, dtype=torch.bfloat16, device="cuda")
    merged, lse = onewave.merge_states(states, torch.zeros(5, 3, 4, device="cuda"))
    torch.testing.assert_close(merged.float(), states.float().mean(1), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(lse, torch.full_like(lse, 3.0).log2())
    print("append and merge: right", flush=True)


if __name__ == "__main__":
    main()
    run_from_bounds()
    run_row_kernels()
