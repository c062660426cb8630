"""Random states of attention, and what they merge into, in float64."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from dense_batch import DenseBatch, Paged
from gpu_checks import make_attention, plan
from reference import Reference


def random_states(
    seed: int,
    *shape: int,
    dtype: torch.dtype = torch.bfloat16,
    empty: float = 0.2,
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """v of `shape` and s of its rows. A part `empty` of the states has no keys: an s of -inf, a v of NaN."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(shape, generator=generator).to(dtype)
    s = 10 * torch.randn(shape[:-1], generator=generator)
    is_empty = torch.rand(shape[:-1], generator=generator) < empty
    v[is_empty], s[is_empty] = math.nan, -math.inf
    return v.to(device), s.to(device)


def merged(v: torch.Tensor, s: torch.Tensor) -> Reference:
    """Of v [seq_len, num_states, num_heads, head_dim] and s, a row after the other."""
    v, s = v.cpu().double(), s.cpu().double()
    expected = Reference(torch.zeros_like(v[:, :0].sum(1)), torch.full_like(s[:, :0].sum(1), -math.inf))
    for token in range(v.shape[0]):
        for head in range(v.shape[2]):
            states = [i for i in range(v.shape[1]) if s[token, i, head] > -math.inf]
            if states:
                scores = s[token, states, head]
                lse = (scores - scores.max()).exp2().sum().log2() + scores.max()
                expected.lse[token, head] = lse
                expected.out[token, head] = (scores - lse).exp2() @ v[token, states, head]
    return expected


def cut_keys(paged: Paged, page_size: int, cut: Callable[[int], tuple[int, int]]) -> Paged:
    """The batch over some of its keys: of each request the pages that `cut` makes of their number."""
    kv_indptr, kv_indices, kv_lens = [0], [], []
    for kv_len, begin, end in zip(
        paged.kv_len_arr.tolist(), paged.kv_indptr[:-1].tolist(), paged.kv_indptr[1:].tolist(), strict=True
    ):
        first, last = cut(end - begin)
        kv_indices.append(paged.kv_indices[begin + first : begin + last])
        kv_indptr.append(kv_indptr[-1] + last - first)
        kv_lens.append(min(last * page_size, kv_len) - min(first * page_size, kv_len))
    return replace(
        paged,
        kv_indptr=torch.tensor(kv_indptr, dtype=torch.int32),
        kv_indices=torch.cat(kv_indices),
        kv_len_arr=torch.tensor(kv_lens, dtype=torch.int32),
    )


def parts_of_keys(paged: Paged, page_size: int, num_parts: int) -> list[Paged]:
    """As that many GPUs would share them."""
    return [
        cut_keys(paged, page_size, lambda n, i=i: (n * i // num_parts, n * (i + 1) // num_parts))
        for i in range(num_parts)
    ]


def states_of_parts(
    batch: DenseBatch, paged: Paged, page_size: int, num_parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """v and s of attention over each part of the keys, not causal."""
    states = []
    for part in parts_of_keys(paged, page_size, num_parts):
        attention = make_attention(batch)
        plan(attention, batch, part, page_size, causal=False)
        states.append(attention.run(batch.q, paged.kv_cache))
    v, s = (torch.stack(tensors, 1) for tensors in zip(*states, strict=True))
    return v, s
