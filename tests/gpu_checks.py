"""What every GPU test asks of a run: poisoned outputs, the tolerance, the same bits twice, untouched rows."""

import math
from typing import Any

import onewave
import torch
from dense_batch import DenseBatch, Expected, Heads, Lens, Paged
from plan_checks import CALIBRATION_FILE

# Splits, both kinds of item, a request with no queries, one with no keys, one with neither.
MIXED = [
    Lens(9000, 1, 3),
    Lens(1030, 3, 5),
    Lens(700, 300),
    Lens(33, 0),
    Lens(0, 4),
    Lens(0, 0),
    Lens(129, 129),
]

# Rows of q and out beyond the batch: filled, and to be left alone.
NUM_EXTRA_ROWS = 5
UNTOUCHED = 7.0
MAX_RELATIVE_ERROR = {torch.bfloat16: 0.0030, torch.float16: 0.0006}
# Where weights may be of e4m3, as onewave.bench.reference derives it.
MAX_FP8_RELATIVE_ERROR = 0.040
# Absolute, in units of log2: 0.07 % of the sum of exponentials.
LSE_TOLERANCE = 1e-3


def make_attention(
    batch: DenseBatch, kv_layout: str = "NHD", num_ctas: int | None = None
) -> onewave.BatchAttention:
    """An object whose limits are just this batch."""
    lens = list(batch.requests())
    return onewave.BatchAttention(
        kv_layout=kv_layout,
        device=str(batch.device),
        max_batch_size=len(lens),
        max_total_qo_len=max(batch.total_qo_len, 1),
        max_kv_len=max(max(group.kv_len for group in lens), 1),
        num_ctas=num_ctas,
        calibration=CALIBRATION_FILE,
    )


def plan(
    attention: onewave.BatchAttention,
    batch: DenseBatch,
    paged: Paged,
    page_size: int,
    causal: bool | torch.Tensor,
    **options: Any,
) -> None:
    heads: Heads = batch.heads
    attention.plan(
        paged.qo_indptr,
        paged.kv_indptr,
        paged.kv_indices,
        paged.kv_len_arr,
        heads.num_qo_heads,
        heads.num_kv_heads,
        heads.head_dim,
        heads.out_dim,
        page_size,
        causal=causal,
        q_data_type=batch.dtype,
        kv_data_type=batch.kv_dtype,
        o_data_type=batch.out_dtype,
        **options,
    )


# A page id of no page: what is not to be looked at.
WILD_PAGE = 1 << 30


def as_block_table(paged: Paged, num_pages: int = 0) -> torch.Tensor:
    """Where its page ids are, rows longer than any request, and than `num_pages`, and further apart than they are long; unused
    entries are wild."""
    used = paged.kv_indptr.diff()
    width = max(int(used.max()), num_pages, 1) + 3 if len(used) else 1
    table = torch.full(
        (len(used) + 1, width + 5), WILD_PAGE, dtype=torch.int32, device=paged.kv_indices.device
    )[:, :width]
    for request, ids in enumerate(paged.kv_indices.split(used.tolist())):
        table[request, : len(ids)] = ids
    return table


class Outputs:
    """Inputs with rows to spare, outputs poisoned with NaN."""

    def __init__(self, batch: DenseBatch, num_extra_rows: int = NUM_EXTRA_ROWS) -> None:
        extra = batch.q.new_full((num_extra_rows, *batch.q.shape[1:]), math.nan)
        self.num_rows = batch.total_qo_len
        self.q = torch.cat([batch.q, extra])
        self.out = self.q.new_empty((*self.q.shape[:2], batch.heads.out_dim), dtype=batch.out_dtype)
        self.lse = torch.empty(self.q.shape[:2], dtype=torch.float32, device=batch.device)
        self.poison()

    def poison(self) -> None:
        for tensor in (self.out, self.lse):
            tensor[: self.num_rows] = math.nan
            tensor[self.num_rows :] = UNTOUCHED

    def check(self, expected: Expected) -> None:
        for name, tensor in (("out", self.out), ("lse", self.lse)):
            assert bool((tensor[self.num_rows :] == UNTOUCHED).all()), (
                f"{name}: rows beyond the batch were written"
            )
        check_lse(self.lse[: self.num_rows], expected.lse, expected.lse_bound)
        check_out(self.out[: self.num_rows], expected)


def check_lse(lse: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | None = None) -> None:
    """`bound`: of each element's error, beside the tolerance."""
    assert not bool(lse.isnan().any()), f"lse: NaN first at {_first(lse.isnan())}"
    is_wrong = lse.isneginf() != expected.isneginf()
    assert not bool(is_wrong.any()), f"lse: -inf in one and not the other, first at {_first(is_wrong)}"
    finite = expected.isfinite()
    error = torch.where(finite, lse - expected, 0.0).abs()
    excess = error if bound is None else error - bound
    assert bool((excess <= LSE_TOLERANCE).all()), f"lse: {_worst(excess, lse, expected)}"


def check_out(out: torch.Tensor, expected: Expected) -> None:
    """The rule: the largest error at most twice that of the computation in low precision, or as much as two roundings make
    of the largest output, by half a step of it and, of the one weight that it may come from, by half an eps; and a bound
    for the whole."""
    if out.numel() == 0:
        return
    assert bool(out.isfinite().all()), f"out: not finite first at {_first(~out.isfinite())}"
    # Even where its sink gives it an lse.
    sees_nothing = (expected.out == 0).all(-1)
    assert not bool(out[sees_nothing].any()), "out: a row that sees no key is not 0"
    error = (out.float() - expected.out).abs()
    if expected.out_bound is not None:
        _check_fp8_out(out, expected, error)
        return
    # The smallest step of the type at 1, for outputs that the low precision happens to hit exactly.
    eps = torch.finfo(out.dtype).eps
    largest = max(expected.out.abs().max().item(), eps)
    half_step = eps / 2 * 2 ** math.floor(math.log2(largest))
    bound = max(2 * expected.low_precision_error, half_step + eps / 2 * largest) + 1e-2 * eps
    assert error.max().item() <= bound, f"out: {_worst(error, out, expected.out)}, the bound is {bound:.3g}"
    relative = (error.norm() / expected.out.norm().clamp_min(1e-30)).item()
    assert relative <= MAX_RELATIVE_ERROR[out.dtype], (
        f"out: relative error {relative:.5f}, {_worst(error, out, expected.out)}"
    )


def _check_fp8_out(out: torch.Tensor, expected: Expected, error: torch.Tensor) -> None:
    """Each element by its own bound and one rounding more, and all together."""
    assert expected.out_bound is not None
    eps = torch.finfo(out.dtype).eps
    largest = expected.out.abs() + expected.out_bound
    excess = error - (expected.out_bound + eps / 2 * largest + 1e-2 * eps)
    assert excess.max().item() <= 0, f"out: {_worst(excess, out, expected.out)}"
    relative = (error.norm() / expected.out.norm().clamp_min(1e-30)).item()
    assert relative <= MAX_FP8_RELATIVE_ERROR, f"out: relative error {relative:.5f}"


def run_twice(attention: onewave.BatchAttention, outputs: Outputs, paged: Paged, **options: Any) -> None:
    """Runs twice on one plan, which needs counters that set themselves back, and compares the bits."""
    results = []
    for _ in range(2):
        outputs.poison()
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse, **options)
        results.append((outputs.out.clone(), outputs.lse.clone()))
    (first_out, first_lse), (second_out, second_lse) = results
    assert torch.equal(first_out.view(torch.uint8), second_out.view(torch.uint8)), "out: two runs differ"
    assert torch.equal(first_lse.view(torch.int32), second_lse.view(torch.int32)), "lse: two runs differ"


def _first(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def _worst(error: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor) -> str:
    position = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    return f"worst at {position}: {actual[position].item():.6g}, expected {expected[position].item():.6g}"
