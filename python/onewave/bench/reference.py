"""Attention by plain matrix products in higher precision: what results are held against."""

import math

import torch

from onewave.bench.tensors import BatchTensors
from onewave.bench.workload import Workload
from onewave.workspace import FP8

# Scores of one block of queries: 1 GB in float32.
MAX_BLOCK_SCORES = 1 << 28
# Relative Frobenius error of out in bf16: the best kernels stand at 0.0020 to 0.0023.
MAX_RELATIVE_ERROR = 0.0030
# Of queries in fp8, where softmax weights may be rounded to e4m3: 0.0265 of each in the root of the mean square (1/16
# over sqrt(3), by mantissas from 1 to 2), and as much of a sum with random signs; half as much again.
MAX_FP8_RELATIVE_ERROR = 0.040


def max_relative_error(workload: Workload) -> float:
    return MAX_FP8_RELATIVE_ERROR if workload.dtype == FP8 else MAX_RELATIVE_ERROR


def reference_attention(tensors: BatchTensors, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """out [total_qo_len, num_qo_heads, head_dim] and lse [total_qo_len, num_qo_heads], base 2, computed in `dtype`
    request by request and kv head by kv head. A row that sees no key is 0, with an lse of -inf."""
    workload = tensors.workload
    group_size = workload.group_size
    out = torch.zeros(tensors.q.shape, dtype=dtype, device=tensors.device)
    lse = torch.full(tensors.q.shape[:2], -math.inf, dtype=dtype, device=tensors.device)
    for rows, k, v in tensors.requests():
        kv_len = k.shape[0]
        if kv_len == 0:
            continue
        block = max(1, MAX_BLOCK_SCORES // (group_size * kv_len))
        for head in range(workload.num_kv_heads):
            keys, values = k[:, head].to(dtype), v[:, head].to(dtype)
            heads = slice(head * group_size, (head + 1) * group_size)
            for begin in range(rows.start, rows.stop, block):
                queries = slice(begin, min(begin + block, rows.stop))
                scores = tensors.q[queries, heads].to(dtype) @ keys.T / math.sqrt(workload.head_dim)
                if workload.logits_soft_cap > 0:
                    scores = scores.div_(workload.logits_soft_cap).tanh_().mul_(workload.logits_soft_cap)
                position = kv_len - rows.stop + torch.arange(queries.start, queries.stop, device=k.device)
                key = torch.arange(kv_len, device=k.device)
                if workload.causal:
                    scores.masked_fill_((key > position[:, None])[:, None], -math.inf)
                if workload.window_left >= 0:
                    is_hidden = key < position[:, None] - workload.window_left
                    scores.masked_fill_(is_hidden[:, None], -math.inf)
                log_sum = torch.logsumexp(scores, -1, keepdim=True)
                lse[queries, heads] = log_sum.squeeze(-1) / math.log(2)
                # Finite where no key is seen, so that the probabilities are 0 there and not NaN.
                log_sum.clamp_min_(torch.finfo(dtype).min)
                out[queries, heads] = scores.sub_(log_sum).exp_() @ values
    return out, lse


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`; infinite where `out` has a NaN."""
    error = (out.to(expected.dtype) - expected).norm() / expected.norm()
    return float(error.nan_to_num(torch.inf))
