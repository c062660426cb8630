"""A batch of requests on one model's attention shape, and what it costs at least."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch

from onewave._tensors import default_out_dtype
from onewave.bench.ceilings import Ceilings
from onewave.workspace import FP8


class Request(NamedTuple):
    """Tokens of one request. The last query is aligned with the last key."""

    kv_len: int
    qo_len: int

    def num_pairs(self, causal: bool, window_left: int = -1) -> int:
        """(query, key) pairs that the mask allows."""
        if window_left >= 0:
            positions = range(self.kv_len - self.qo_len, self.kv_len)
            ends = (max(position + 1, 0) if causal else self.kv_len for position in positions)
            return sum(
                max(end - max(position - window_left, 0), 0)
                for end, position in zip(ends, positions, strict=True)
            )
        if not causal:
            return self.kv_len * self.qo_len
        num_queries = min(self.qo_len, self.kv_len)  # the others see no key
        return (2 * self.kv_len - num_queries + 1) * num_queries // 2

    def num_keys(self, window_left: int = -1) -> int:
        """Keys that some query sees."""
        if window_left < 0:
            return self.kv_len
        return self.kv_len - max(self.kv_len - self.qo_len - window_left, 0)


@dataclass(frozen=True)
class Workload:
    """What every system is measured on."""

    name: str
    requests: tuple[Request, ...]
    num_qo_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 16
    causal: bool = True
    window_left: int = -1
    logits_soft_cap: float = 0.0
    prefix_len: int = 0  # tokens that all requests share, in the same pages: a multiple of page_size
    dtype: torch.dtype = torch.bfloat16  # of q; torch.float8_e4m3fn needs a kv_dtype of that
    kv_dtype: torch.dtype = torch.bfloat16  # dtype, or torch.float8_e4m3fn
    # CTAs that onewave may use, None: one for each SM. Other systems have no such limit and are left out.
    num_ctas: int | None = None
    # Runs in the CUDA graph that is timed, and divides its time; 0: a run is launched and timed by itself.
    num_graph_nodes: int = 0
    # Of the random lengths; None where they are given.
    lens_seed: int | None = None

    @property
    def group_size(self) -> int:
        return self.num_qo_heads // self.num_kv_heads

    @property
    def out_dtype(self) -> torch.dtype:
        return default_out_dtype(self.dtype)

    @property
    def prefix_groups(self) -> list[tuple[int, int, int]]:
        """As plan() takes them."""
        return [(0, len(self.requests), self.prefix_len)] if self.prefix_len > 0 else []

    @property
    def total_qo_len(self) -> int:
        return sum(request.qo_len for request in self.requests)

    @property
    def num_bytes(self) -> int:
        """q and out, and each K and V row that is seen, once."""
        q_rows = self.total_qo_len * self.num_qo_heads
        num_keys = sum(request.num_keys(self.window_left) for request in self.requests)
        num_keys -= max(len(self.requests) - 1, 0) * self.prefix_len
        kv_rows = num_keys * self.num_kv_heads
        row_bytes = q_rows * (self.dtype.itemsize + self.out_dtype.itemsize)
        return (row_bytes + 2 * kv_rows * self.kv_dtype.itemsize) * self.head_dim

    @property
    def num_flop(self) -> int:
        """Of both matrix products, for the (query, key) pairs that the mask allows."""
        pairs = sum(request.num_pairs(self.causal, self.window_left) for request in self.requests)
        return 4 * pairs * self.num_qo_heads * self.head_dim

    def floor_us(self, ceilings: Ceilings) -> float:
        """No GPU of that kind does it in less."""
        # Tensor cores multiply bytes twice as fast as bf16.
        flop_per_second = ceilings.flop_per_second * torch.bfloat16.itemsize / self.dtype.itemsize
        return max(self.num_bytes / ceilings.bytes_per_second, self.num_flop / flop_per_second) * 1e6

    @property
    def decodes(self) -> list[int]:
        """Which requests have one query."""
        return [i for i, request in enumerate(self.requests) if request.qo_len == 1]

    @property
    def others(self) -> list[int]:
        """Which requests have another number of queries: prefill, chunks, verification."""
        return [i for i, request in enumerate(self.requests) if request.qo_len != 1]

    def subset(self, indices: Iterable[int], name: str | None = None) -> "Workload":
        """Some of the requests on the same shape."""
        return replace(self, name=name or self.name, requests=tuple(self.requests[i] for i in indices))

    def describe(self) -> str:
        """Requests as count x (kv_len, qo_len), and the shape; for the terminal."""
        batch = []
        for qo_len, group in groupby(self.requests, key=lambda request: request.qo_len):
            kv_lens = [request.kv_len for request in group]
            shortest, longest = min(kv_lens), max(kv_lens)
            shown = f"{shortest}" if shortest == longest else f"{shortest}..{longest}"
            batch.append(f"{len(kv_lens)} x ({shown}, {qo_len})")
        shown_batch = " + ".join(batch) if len(batch) <= 4 else self._describe_ragged()
        return f"{shown_batch}, {self.describe_shape()}"

    def describe_shape(self, has_page_size: bool = True) -> str:
        """All but the requests."""
        parts = [f"{self.num_qo_heads}/{self.num_kv_heads} heads", f"head_dim {self.head_dim}"]
        parts += [f"page {self.page_size}"] if has_page_size else []
        parts.append("causal" if self.causal else "full mask")
        if self.kv_dtype == FP8:
            fp8 = "queries and cache" if self.dtype == FP8 else "cache"
            parts.append(f"{fp8} of {str(FP8).removeprefix('torch.')}")
        if self.prefix_len > 0:
            parts.append(f"{self.prefix_len} of the tokens shared")
        if self.window_left >= 0:
            parts.append(f"window {self.window_left}")
        if self.logits_soft_cap > 0:
            parts.append(f"soft cap {self.logits_soft_cap:g}")
        if self.num_ctas is not None:
            parts.append(f"{self.num_ctas} CTAs")
        if self.num_graph_nodes > 0:
            parts.append(f"a graph of {self.num_graph_nodes} runs")
        return ", ".join(parts)

    def _describe_ragged(self) -> str:
        kv_lens, qo_lens = zip(*self.requests, strict=True)
        return f"{len(kv_lens)} x ({min(kv_lens)}..{max(kv_lens)}, {min(qo_lens)}..{max(qo_lens)})"
