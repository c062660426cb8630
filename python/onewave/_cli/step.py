"""The serving step of the demo: its requests, its tensors, and what it costs at least."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Measured on one H200 (132 SMs): what reading HBM and dense bf16 matrix products reach.
PEAK_BYTES_PER_SECOND = 4.70e12
PEAK_FLOP_PER_SECOND = 790e12


@dataclass(frozen=True)
class Request:
    kv_len: int
    qo_len: int


@dataclass(frozen=True)
class Step:
    """Requests under a causal mask, and the model's shape."""

    requests: list[Request]
    num_qo_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def total_qo_len(self) -> int:
        return sum(request.qo_len for request in self.requests)

    @property
    def num_bytes(self) -> int:
        """q and out, and each K and V row of each request once."""
        q_rows = self.total_qo_len * self.num_qo_heads
        kv_rows = sum(request.kv_len for request in self.requests) * self.num_kv_heads
        return 2 * (q_rows + kv_rows) * self.head_dim * self.dtype.itemsize

    @property
    def num_flop(self) -> int:
        """Of both matrix products, for the (query, key) pairs that the mask allows; kv_len >= qo_len."""
        pairs = 0
        for request in self.requests:
            first_query_keys = request.kv_len - request.qo_len + 1
            pairs += (first_query_keys + request.kv_len) * request.qo_len // 2
        return 4 * pairs * self.num_qo_heads * self.head_dim

    @property
    def floor_us(self) -> float:
        """No GPU of this kind does the step in less."""
        return max(self.num_bytes / PEAK_BYTES_PER_SECOND, self.num_flop / PEAK_FLOP_PER_SECOND) * 1e6


def gpu_step(seed: int) -> Step:
    lens = random.Random(seed)
    decodes = [Request(lens.randint(512, 16384), 1) for _ in range(32)]
    return Step([*decodes, Request(8192, 2048)])


def cpu_step(seed: int) -> Step:
    lens = random.Random(seed)
    decodes = [Request(lens.randint(512, 8192), 1) for _ in range(8)]
    return Step([*decodes, Request(2048, 128)])


class StepTensors:
    """Random queries, and keys and values in shuffled pages; what belongs to no key is NaN."""

    def __init__(self, step: Step, device: str, seed: int) -> None:
        self.step = step
        generator = torch.Generator(device).manual_seed(seed)
        num_pages = [math.ceil(request.kv_len / step.page_size) for request in step.requests]
        self.qo_indptr = _indptr([request.qo_len for request in step.requests])
        self.kv_indptr = _indptr(num_pages)
        self.kv_len_arr = torch.tensor([request.kv_len for request in step.requests], dtype=torch.int32)
        page_ids = torch.randperm(sum(num_pages), device=device, generator=generator)
        self.kv_indices = page_ids.to(torch.int32)
        q_shape = (step.total_qo_len, step.num_qo_heads, step.head_dim)
        self.q = torch.randn(q_shape, dtype=step.dtype, device=device, generator=generator)
        cache_shape = (sum(num_pages), 2, step.page_size, step.num_kv_heads, step.head_dim)
        self.kv_cache = torch.randn(cache_shape, dtype=step.dtype, device=device, generator=generator)
        for request, end in zip(step.requests, self.kv_indptr[1:].tolist(), strict=True):
            last_page_len = request.kv_len % step.page_size
            if last_page_len > 0:
                self.kv_cache[page_ids[end - 1], :, last_page_len:] = math.nan

    def requests(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """q [qo_len, num_qo_heads, head_dim], k and v [kv_len, num_kv_heads, head_dim] of each request."""
        q_begin = page_begin = 0
        for i, request in enumerate(self.step.requests):
            q_end, page_end = int(self.qo_indptr[i + 1]), int(self.kv_indptr[i + 1])
            pages = self.kv_cache[self.kv_indices[page_begin:page_end].long()]
            k, v = (pages[:, i].flatten(0, 1)[: request.kv_len] for i in range(2))
            yield self.q[q_begin:q_end], k, v
            q_begin, page_begin = q_end, page_end


def plain_attention(tensors: StepTensors, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """out and base-2 lse, computed in `dtype` request by request and head by head with plain matrix products."""
    step = tensors.step
    group_size = step.num_qo_heads // step.num_kv_heads
    out, lse = [], []
    for q, k, v in tensors.requests():
        qo_len, kv_len = q.shape[0], k.shape[0]
        last_key = kv_len - qo_len + torch.arange(qo_len, device=q.device)
        is_hidden = torch.arange(kv_len, device=q.device) > last_key[:, None]
        head_out, head_lse = [], []
        for head in range(step.num_qo_heads):
            keys, values = (rows[:, head // group_size].to(dtype) for rows in (k, v))
            scores = q[:, head].to(dtype) @ keys.T / math.sqrt(step.head_dim)
            scores.masked_fill_(is_hidden, -math.inf)
            head_out.append(scores.softmax(-1) @ values)
            head_lse.append(scores.logsumexp(-1) / math.log(2))
        out.append(torch.stack(head_out, 1))
        lse.append(torch.stack(head_lse, 1))
    return torch.cat(out), torch.cat(lse)


def _indptr(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lens]).cumsum(0).to(torch.int32)
