"""A small mixed batch for compute-sanitizer: splits and merges, both kinds of item, both loaders, both head_dims.

Run under the tool, with `tests` in PYTHONPATH. Ends with status 0 when every output is right."""

import itertools

import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import Outputs, make_attention, plan
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


if __name__ == "__main__":
    main()
