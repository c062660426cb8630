"""Attention in float64, request by request and written out plainly: what the CPU executor is held against. It sees the
dense keys and values of a batch, so that pages, packing and splits are the executor's alone."""

import math
from typing import NamedTuple

import torch
from dense_batch import DenseBatch, Masks

# Of float32 sums over a few thousand terms of order 1.
FLOAT32_ERROR = 1e-5
# And of scores, which large ones round more: relative to the log-sum-exp, their size. 8e-7 has been seen.
SCORE_ERROR = 2e-6


class Reference(NamedTuple):
    """float64 [total_qo_len, num_qo_heads, head_dim_vo] and, base 2, [total_qo_len, num_qo_heads]."""

    out: torch.Tensor
    lse: torch.Tensor


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    sm_scale: float,
    window_left: int = -1,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request: q [num_qo_heads, qo_len, head_dim] over k and v [num_qo_heads, kv_len, head_dim]. The last query is
    aligned with the last key; a row that sees no key is 0, with a log-sum-exp of -inf, or its sink's."""
    qo_len, kv_len = q.shape[1], k.shape[1]
    scores = (q @ k.mT) * sm_scale
    if soft_cap > 0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    last_key = kv_len - qo_len + torch.arange(qo_len, device=q.device)[:, None]
    key = torch.arange(kv_len, device=q.device)[None, :]
    if causal:
        scores[:, key > last_key] = -math.inf
    if window_left >= 0:
        scores[:, key < last_key - window_left] = -math.inf
    lse = torch.logsumexp(scores, dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks[:, None])
    out = torch.exp(scores - lse.clamp_min(torch.finfo(lse.dtype).min)[..., None]) @ v
    return out, lse / math.log(2)


def reference(
    batch: DenseBatch,
    masks: bool | Masks,
    sm_scale: float | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Reference:
    """Attention of all requests of a batch. `masks`: or whether causal; none by request. `sm_scale` None:
    1 / sqrt(head_dim)."""
    heads = batch.heads
    if isinstance(masks, bool):
        masks = Masks(masks)
    assert isinstance(masks.causal, bool) and masks.custom is None
    sinks = None if masks.sinks is None else masks.sinks.double()
    scale = (1 / math.sqrt(heads.head_dim) if sm_scale is None else sm_scale) * k_scale
    q = batch.q.double()
    result = Reference(q.new_empty(*q.shape[:2], heads.out_dim), torch.empty_like(q[..., 0]))
    begin = 0
    for group, group_k, group_v in zip(batch.lens, batch.k, batch.v, strict=True):
        for k, v in zip(group_k.double(), group_v.double(), strict=True):
            queries = slice(begin, begin + group.qo_len)
            begin = queries.stop
            # Query head h reads kv head h // group_size.
            k, v = (rows.repeat_interleave(heads.group_size, dim=1).transpose(0, 1) for rows in (k, v))
            seen = (masks.causal, scale, masks.window_left, masks.soft_cap, sinks)
            out, lse = attend(q[queries].transpose(0, 1), k, v, *seen)
            result.out[queries] = out.transpose(0, 1) * v_scale
            result.lse[queries] = lse.T
    return result


def check_against(expected: Reference, out: torch.Tensor, lse: torch.Tensor) -> None:
    """float32 arithmetic and one rounding to the type of `out`, no more; infinities and NaN apart from the rest."""
    error = FLOAT32_ERROR + SCORE_ERROR * torch.where(expected.lse.isfinite(), expected.lse.abs(), 0.0)
    _check("lse", lse, expected.lse, error)
    rounding = 0.0 if out.dtype == torch.float32 else torch.finfo(out.dtype).eps / 2
    _check("out", out, expected.out, error[..., None] + rounding * expected.out.abs())


def _check(name: str, actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float) -> None:
    assert not bool(actual.isnan().any()), f"{name}: NaN first at {_first(actual.isnan())}"
    is_wrong = actual.isinf() != expected.isinf()
    assert not bool(is_wrong.any()), f"{name}: infinite in one and not the other, first at {_first(is_wrong)}"
    finite = expected.isfinite()
    excess = torch.where(finite, actual - expected, 0.0).abs() - bound
    if excess.numel() == 0 or excess.max() <= 0:
        return
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{name}: worst at {worst}: {actual[worst].item():.8g}, expected {expected[worst].item():.8g}"
    )


def _first(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())
