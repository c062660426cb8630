"""Random calls of append_paged_kv_cache(), and what they do, row by row in plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import onewave
import torch

LAYOUTS = ("NHD", "HND", "pair", "strided")
UNTOUCHED = 7.0
FP8 = torch.float8_e4m3fn

# Of rows of 2 kv heads that are quantised.
SCALES: dict[str, dict[str, float | torch.Tensor]] = {
    "none": {},
    "floats": {"k_scale": 0.037, "v_scale": 3},
    "one of them": {"v_scale": 0.005},
    "tensors of one element": {"k_scale": torch.tensor(0.3), "v_scale": torch.tensor([0.01])},
    "a factor for each head": {
        "k_scale": torch.tensor([0.7, 0.003]),
        "v_scale": torch.tensor([0.1, math.nan, math.nan, 2.3])[::3],
    },
}


@dataclass(frozen=True)
class Cache:
    """A cache with the memory that it is a view of, so that what was not to be written can be looked at."""

    layout: str  # strided: views that step over heads, pages and columns, k and v by strides of their own
    memory: tuple[torch.Tensor, ...]
    num_kv_heads: int
    head_dim: int

    @property
    def argument(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.layout != "strided":
            return self.memory[0] if len(self.memory) == 1 else (self.memory[0], self.memory[1])
        return self.memory[0][:, 1, :, ::2, : self.head_dim], self.memory[1][:, 1, :, 1::3, 16:]

    @property
    def pages(self) -> tuple[torch.Tensor, ...]:
        """k and v as [page, token, head, column]."""
        if isinstance(self.argument, tuple):
            return self.argument
        parts = self.argument[:, 0], self.argument[:, 1]
        return tuple(part.transpose(1, 2) for part in parts) if self.layout == "HND" else parts

    @property
    def kv_layout(self) -> str:
        return "HND" if self.layout == "HND" else "NHD"

    def to(self, device: str) -> Cache:
        return replace(self, memory=tuple(part.to(device, copy=True) for part in self.memory))


def empty_cache(
    layout: str,
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    head_dim_vo: int,
    dtype: torch.dtype,
) -> Cache:
    assert head_dim == head_dim_vo or layout in ("pair", "strided")
    shapes = {
        "NHD": [(num_pages, 2, page_size, num_kv_heads, head_dim)],
        "HND": [(num_pages, 2, num_kv_heads, page_size, head_dim)],
        "pair": [(num_pages, page_size, num_kv_heads, columns) for columns in (head_dim, head_dim_vo)],
        "strided": [
            (num_pages, 3, page_size, 2 * num_kv_heads, head_dim + 16),
            (num_pages, 2, page_size, 3 * num_kv_heads, head_dim_vo + 16),
        ],
    }[layout]
    memory = tuple(torch.full(shape, UNTOUCHED, dtype=dtype) for shape in shapes)
    return Cache(layout, memory, num_kv_heads, head_dim)


@dataclass(frozen=True)
class Append:
    """The arguments of a call, all on one device."""

    rows: dict[str, torch.Tensor]  # append_key, append_value, batch_indices, positions
    cache: Cache
    tables: dict[str, torch.Tensor]  # kv_indices, kv_indptr, kv_last_page_len
    scales: dict[str, float | torch.Tensor] = field(default_factory=dict)  # k_scale, v_scale

    def run(self) -> None:
        onewave.append_paged_kv_cache(
            *self.rows.values(),
            self.cache.argument,
            *self.tables.values(),
            self.cache.kv_layout,
            **self.scales,
        )

    def to(self, device: str) -> Append:
        return Append(
            {name: _moved(tensor, device) for name, tensor in self.rows.items()},
            self.cache.to(device),
            {name: _moved(tensor, device) for name, tensor in self.tables.items()},
            {
                name: _moved(scale, device) if isinstance(scale, torch.Tensor) else scale
                for name, scale in self.scales.items()
            },
        )

    def with_(self, **changes: torch.Tensor) -> Append:
        """With other tensors, and a cache of its own."""
        rows, tables = (
            {name: changes.get(name, tensor) for name, tensor in part.items()}
            for part in (self.rows, self.tables)
        )
        return replace(self, rows=rows, cache=self.cache.to(str(self.cache.memory[0].device)), tables=tables)

    def expected(self) -> tuple[torch.Tensor, ...]:
        """The cache's memory after the call."""
        cache = self.cache.to("cpu")
        pages = [bits(part) for part in cache.pages]
        key, value, batch_indices, positions = (tensor.cpu() for tensor in self.rows.values())
        if cache.memory[0].dtype == FP8 != key.dtype:
            key = quantised(key, self.scales.get("k_scale", 1))
            value = quantised(value, self.scales.get("v_scale", 1))
        key, value = bits(key), bits(value)
        kv_indices, kv_indptr, _ = (tensor.tolist() for tensor in self.tables.values())
        num_pages, page_size = pages[0].shape[:2]
        for i, (request, position) in enumerate(zip(batch_indices.tolist(), positions.tolist(), strict=True)):
            if not 0 <= request < len(kv_indptr) - 1 or position < 0:
                continue
            index = kv_indptr[request] + position // page_size
            if not (0 <= index < min(kv_indptr[request + 1], len(kv_indices))):
                continue
            page = kv_indices[index]
            if 0 <= page < num_pages:
                pages[0][page, position % page_size] = key[i]
                pages[1][page, position % page_size] = value[i]
        return cache.memory

    def run_and_check(self) -> None:
        expected = self.expected()
        self.run()
        self.check(expected)

    def check(self, expected: tuple[torch.Tensor, ...]) -> None:
        for part, (memory, wanted) in enumerate(zip(self.cache.memory, expected, strict=True)):
            is_wrong = bits(memory.cpu()) != bits(wanted)
            assert not bool(is_wrong.any()), (
                f"{self.cache.layout} part {part}: {int(is_wrong.sum())} elements, first at {is_wrong.nonzero()[0]}"
            )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Elements of fp8 as bytes, of which torch can do more, and a NaN equals itself."""
    return tensor.view(torch.uint8) if tensor.dtype == FP8 else tensor


def quantised(rows: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """[nnz, num_kv_heads, head_dim] in fp8: the nearest of all its numbers, and of two the even one."""
    one = torch.ones((), dtype=torch.float32)
    scaled = rows.float() * (one / torch.as_tensor(scale, dtype=torch.float32).cpu().reshape(-1, 1))
    numbers = torch.arange(127, dtype=torch.uint8).view(FP8).double()
    size = scaled.abs().double().clamp(max=448)
    above = torch.searchsorted(numbers, size).clamp(1, 126)
    below = above - 1
    middle = (numbers[above] + numbers[below]) / 2
    code = torch.where((size > middle) | ((size == middle) & (above % 2 == 0)), above, below)
    code = torch.where(scaled.isnan(), 0x7F, code + 0x80 * scaled.signbit())
    return code.to(torch.uint8).view(FP8)


def hard_elements() -> torch.Tensor:
    """float32 [num, 2, 64] of both signs: the numbers of fp8, the middles between neighbours and what is next to those,
    and what is too large, infinite, too small or NaN."""
    numbers = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    infinity = torch.tensor(math.inf)
    edges = torch.tensor([448.1, 464, 465, 480, 1e30, math.inf, math.nan, 1e-40, 2**-10, 2**-11])
    positive = torch.cat((numbers, middles, middles.nextafter(infinity), middles.nextafter(-infinity), edges))
    both = torch.cat((positive, -positive))
    num_rows = -(-both.numel() // 128)
    return both.repeat(2)[: num_rows * 128].view(num_rows, 2, 64)


def _moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A copy with the same strides, which torch keeps only of tensors without gaps."""
    memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return memory.copy_(tensor)


def int32(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random_append(
    old_lens: list[int],
    new_lens: list[int],
    seed: int,
    *,
    page_size: int = 16,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    head_dim_vo: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    layout: str = "NHD",
    num_padding_rows: int = 0,
    scales: str = "none",
) -> Append:
    """Requests of old_lens keys that get new_lens more, in shuffled pages; the rows of a fused projection. kv_dtype: of
    the cache, where it is another. scales: one of SCALES."""
    generator = torch.Generator().manual_seed(seed)
    seq_lens = int32([old + new for old, new in zip(old_lens, new_lens, strict=True)])
    pages_each = (seq_lens + page_size - 1) // page_size
    kv_indptr = torch.nn.functional.pad(pages_each.cumsum(0), (1, 0)).int()
    num_used = int(kv_indptr[-1])
    kv_indices = torch.randperm(num_used + 3, generator=generator)[:num_used].int()
    append_indptr = torch.nn.functional.pad(int32(new_lens).cumsum(0), (1, 0)).int()
    nnz = sum(new_lens) + num_padding_rows
    batch_indices, positions = onewave.get_batch_indices_positions(append_indptr, seq_lens, nnz)
    out_dim = head_dim if head_dim_vo is None else head_dim_vo
    fused = torch.randn(nnz, 3 * num_kv_heads, max(head_dim, out_dim), generator=generator).to(dtype)
    return Append(
        {
            "append_key": fused[:, num_kv_heads : 2 * num_kv_heads, :head_dim],
            "append_value": fused[:, 2 * num_kv_heads :, :out_dim],
            "batch_indices": batch_indices,
            "positions": positions,
        },
        empty_cache(layout, num_used + 3, page_size, num_kv_heads, head_dim, out_dim, kv_dtype or dtype),
        {
            "kv_indices": kv_indices,
            "kv_indptr": kv_indptr,
            "kv_last_page_len": seq_lens - (pages_each - 1) * page_size,
        },
        SCALES[scales],
    )


# Rows of two requests of three pages and one, of 16 tokens, that must be skipped: what is changed in a call of
# old_lens (35, 3) and new_lens (6, 5).
SKIPPED = {
    "no row": {},
    "padding": {"batch_indices": int32([-1, 0, -1, 0, 0, 0, 1, -1, 1, 1, -7])},
    "beyond the batch": {"batch_indices": int32([0, 0, 0, 0, 0, 2, 1, 1, 1, 2**31 - 1, -(2**31)])},
    "before a request": {"positions": int32([-1, 36, 37, 38, 39, 40, 3, 4, -(2**31), 6, 7])},
    "beyond a request's pages": {"positions": int32([35, 36, 48, 38, 49, 2**31 - 1, 3, 4, 16, 6, 2**31 - 1])},
    "pages of nobody": {"kv_indptr": int32([0, 3, 3])},
    "pages that go back": {"kv_indptr": int32([3, 0, 2])},
    "pages before the table": {"kv_indptr": int32([-3, 0, 2])},
    "pages beyond the table": {"kv_indptr": int32([3, 9, 2**31 - 1])},
    "no pages at all": {"kv_indices": int32([])},
    "pages that are not in the cache": {"kv_indices": int32([1, 0, 7, 2**31 - 1])},
    "negative pages": {"kv_indices": int32([1, 0, -1, -(2**31)])},
}


def skipping_append(name: str) -> Append:
    return random_append([35, 3], [6, 5], 1).with_(**SKIPPED[name])
