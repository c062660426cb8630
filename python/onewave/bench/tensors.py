"""The tensors of a workload: random queries, and keys and values in shuffled pages."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from onewave.bench.workload import Workload


@dataclass(frozen=True)
class BatchTensors:
    """Arguments of plan() and run(): lengths on the host, the rest on the device."""

    workload: Workload
    qo_indptr: torch.Tensor  # int32 [batch_size + 1], tokens
    kv_indptr: torch.Tensor  # int32 [batch_size + 1], pages
    kv_len_arr: torch.Tensor  # int32 [batch_size], tokens
    kv_indices: torch.Tensor  # int32 [kv_indptr[batch_size]], page ids
    q: torch.Tensor  # [total_qo_len, num_qo_heads, head_dim], of the workload's dtype
    kv_cache: torch.Tensor  # [num_pages, 2, page_size, num_kv_heads, head_dim], of the workload's kv_dtype

    @property
    def device(self) -> torch.device:
        return self.q.device

    def pages_of(self, i: int) -> torch.Tensor:
        """Page ids of request i."""
        return self.kv_indices[int(self.kv_indptr[i]) : int(self.kv_indptr[i + 1])]

    def requests(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """For each request its rows of q, and its k and v, dense: [kv_len, num_kv_heads, head_dim]."""
        for i, request in enumerate(self.workload.requests):
            pages = self.kv_cache[self.pages_of(i).long()]
            k, v = (pages[:, side].flatten(0, 1)[: request.kv_len] for side in range(2))
            yield slice(int(self.qo_indptr[i]), int(self.qo_indptr[i + 1])), k, v

    def query_rows(self, indices: Sequence[int]) -> torch.Tensor:
        """Rows of q, on the device, that belong to these requests."""
        spans = [torch.arange(int(self.qo_indptr[i]), int(self.qo_indptr[i + 1])) for i in indices]
        return torch.cat(spans).to(self.device)

    def subset(self, indices: Sequence[int]) -> "BatchTensors":
        """Some of the requests, with queries and page table of their own and the same cache."""
        workload = self.workload.subset(indices)
        return BatchTensors(
            workload,
            *lens_tensors(workload),
            kv_indices=torch.cat([self.pages_of(i) for i in indices]),
            q=self.q[self.query_rows(indices)],
            kv_cache=self.kv_cache,
        )


def make_tensors(workload: Workload, device: str, seed: int, unused: float | None = None) -> BatchTensors:
    """Random values of a fixed seed. `unused`: what the tails of last pages hold instead of random values."""
    generator = torch.Generator(device).manual_seed(seed)
    qo_indptr, kv_indptr, kv_len_arr = lens_tensors(workload)
    num_pages = int(kv_indptr[-1])
    page_ids = torch.randperm(num_pages, device=device, generator=generator)
    # The pages of the others' prefixes are nobody's.
    num_shared = workload.prefix_len // workload.page_size
    for begin in kv_indptr[1:-1].tolist():
        page_ids[begin : begin + num_shared] = page_ids[:num_shared]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=workload.out_dtype, device=device, generator=generator)

    q = random(workload.total_qo_len, workload.num_qo_heads, workload.head_dim).to(workload.dtype)
    kv_cache = random(num_pages, 2, workload.page_size, workload.num_kv_heads, workload.head_dim).to(
        workload.kv_dtype
    )
    if unused is not None:
        for request, end in zip(workload.requests, kv_indptr[1:].tolist(), strict=True):
            last_page_len = request.kv_len % workload.page_size
            if last_page_len > 0:
                kv_cache[page_ids[end - 1], :, last_page_len:] = unused
    return BatchTensors(workload, qo_indptr, kv_indptr, kv_len_arr, page_ids.to(torch.int32), q, kv_cache)


def lens_tensors(workload: Workload) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qo_indptr, kv_indptr and kv_len_arr."""
    kv_lens = [request.kv_len for request in workload.requests]
    return (
        _indptr([request.qo_len for request in workload.requests]),
        _indptr([math.ceil(kv_len / workload.page_size) for kv_len in kv_lens]),
        torch.tensor(kv_lens, dtype=torch.int32),
    )


def _indptr(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lens]).cumsum(0).to(torch.int32)
