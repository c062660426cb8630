"""The tensors of a run: checked against the plan, and as the addresses and strides that the extension takes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from onewave import _core
from onewave._scales import ScaleChecker
from onewave._validate import (
    MAX_INT32,
    ROW_ALIGNMENT,
    check_device,
    check_int,
    check_rows_aligned,
    check_shape,
    check_tensor,
)
from onewave.workspace import CORE_DTYPES, FP8, WIDE_DTYPES, check_dtype, check_kv_dtype


@dataclass(frozen=True)
class Shape:
    """What a plan fixes for the tensors of its runs: all of it is baked into a CUDA graph."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    page_size: int
    dtype: torch.dtype  # of q
    kv_dtype: torch.dtype
    out_dtype: torch.dtype

    def to_core(self) -> _core.AttentionShape:
        return _core.AttentionShape(
            self.num_qo_heads,
            self.num_kv_heads,
            self.head_dim_qk,
            self.head_dim_vo,
            self.page_size,
            CORE_DTYPES[self.dtype],
            CORE_DTYPES[self.kv_dtype],
            CORE_DTYPES[self.out_dtype],
        )


# Of plan(): num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo, page_size, q_data_type, kv_data_type, o_data_type.
ShapeArguments = tuple[int, int, int, int, int, torch.dtype, torch.dtype, torch.dtype | None]


def make_shape(
    device: torch.device,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim_qk: int,
    head_dim_vo: int,
    page_size: int,
    q_data_type: torch.dtype,
    kv_data_type: torch.dtype,
    o_data_type: torch.dtype | None,
) -> Shape:
    """Checks the arguments of plan() that say what a plan is for; whether heads divide is the planner's to check."""
    num_qo_heads = check_int("num_qo_heads", num_qo_heads, 1)
    num_kv_heads = check_int("num_kv_heads", num_kv_heads, 1)
    head_dim_qk = check_int("head_dim_qk", head_dim_qk, 1)
    head_dim_vo = check_int("head_dim_vo", head_dim_vo, 1)
    page_size = check_int("page_size", page_size, 1)
    check_dtype("q_data_type", q_data_type)
    if q_data_type == torch.float32 and device.type != "cpu":
        raise ValueError(
            f"q_data_type is torch.float32; it must be torch.bfloat16, torch.float16 or {FP8} on a GPU"
        )
    check_kv_dtype("kv_data_type", kv_data_type, "q_data_type", q_data_type)
    out_dtype = default_out_dtype(q_data_type) if o_data_type is None else o_data_type
    _check_out_dtype(device, out_dtype, q_data_type)
    heads = (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo)
    return Shape(*heads, page_size, q_data_type, kv_data_type, out_dtype)


def default_out_dtype(q_dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if q_dtype == FP8 else q_dtype


def _check_out_dtype(device: torch.device, out_dtype: torch.dtype, q_dtype: torch.dtype) -> None:
    if q_dtype != FP8:
        if out_dtype != q_dtype:
            raise ValueError(f"o_data_type is {out_dtype!r}; it must equal q_data_type, {q_dtype}")
        return
    check_dtype("o_data_type", out_dtype, WIDE_DTYPES)
    if out_dtype == torch.float32 and device.type != "cpu":
        raise ValueError("o_data_type is torch.float32; it must be torch.bfloat16 or torch.float16 on a GPU")


def check_first_rows(
    name: str, value: Any, num_dims: int, dtypes: Collection[torch.dtype] = WIDE_DTYPES
) -> torch.device:
    """Rows whose dtype, head_dim (the last size) and device, which is returned, are what other tensors must have."""
    device = check_device(name, value)
    check_dtype(f"the dtype of {name}", value.dtype, dtypes)
    check_tensor(name, value, dtype=value.dtype, devices=(device,), num_dims=num_dims)
    check_row_bytes(name, value.shape[-1], value.dtype)
    check_rows_aligned(name, value)
    return device


def check_row_bytes(name: str, head_dim: int, dtype: torch.dtype) -> None:
    row_bytes = head_dim * dtype.itemsize
    if row_bytes == 0 or row_bytes % ROW_ALIGNMENT != 0:
        raise ValueError(
            f"{name} has rows of {row_bytes} bytes, its last dimension; it must have a multiple of {ROW_ALIGNMENT}"
        )


def check_rows(name: str, value: Any, like: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Rows of this shape, and of the dtype and device of `like`."""
    check_tensor(name, value, dtype=like.dtype, devices=(like.device,), num_dims=len(shape))
    check_shape(name, value, shape, meaning)
    check_rows_aligned(name, value)


class PagedRows(NamedTuple):
    """K or V, in the order of RunArgs; strides in elements."""

    address: int
    page_stride: int
    token_stride: int
    head_stride: int


class KvCache(NamedTuple):
    k: PagedRows
    v: PagedRows
    num_pages: int


KvTensors = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def layout_of(
    q: torch.Tensor, kv_cache: KvTensors, out: torch.Tensor | None, lse: torch.Tensor | None, return_lse: bool
) -> tuple[Any, ...] | None:
    """All that run() checks of its tensors, but for their addresses; None where one is not a tensor at all.

    In one piece, since a model calls run() for every layer: each function of Python's would take as long as two of
    these tuples.
    """
    try:
        if isinstance(kv_cache, (tuple, list)):
            k, v = kv_cache
            of_v = (v.shape, v.stride(), v.dtype, v.device)
        else:
            k, of_v = kv_cache, None
        return (
            (q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, k.device),
            of_v,
            None if out is None else (out.shape, out.stride(), out.dtype, out.device),
            return_lse if lse is None else (lse.shape, lse.stride(), lse.dtype, lse.device),
        )
    except (AttributeError, ValueError):
        return None


class CheckedTensors(NamedTuple):
    """Tensors of a run that have passed: others of the same layout need no checks but those of their addresses."""

    layout: tuple[Any, ...] | None
    num_rows: int  # that q, out and lse have
    num_pages: int
    v_offset: int  # bytes from k to v where they are one tensor
    args: _core.RunArgs  # without addresses and scales


class TensorChecker:
    """Checks tensors of one device and cache layout against a shape."""

    def __init__(self, device: torch.device, kv_layout: str, shape: Shape) -> None:
        self._devices = (device,)
        self.shape = shape
        self.scales = ScaleChecker(self._devices, kv_layout, shape)
        # Positions of (page, token, head) in a pair's tensor, and the sizes its dimensions must have.
        if kv_layout == "NHD":
            self._positions = (0, 1, 2)
            rows = (shape.page_size, shape.num_kv_heads)
            self._page_meaning = "page_size, num_kv_heads, head_dim"
        else:
            self._positions = (0, 2, 1)
            rows = (shape.num_kv_heads, shape.page_size)
            self._page_meaning = "num_kv_heads, page_size, head_dim"
        self._k_page, self._v_page = (*rows, shape.head_dim_qk), (*rows, shape.head_dim_vo)

    def check_run(
        self,
        q: torch.Tensor,
        kv_cache: KvTensors,
        out: torch.Tensor | None,
        lse: torch.Tensor | None,
        return_lse: bool,
        num_rows: int,
    ) -> CheckedTensors:
        """All tensors of a run, in words where one is wrong. An `out` or `lse` that is None will have q's rows."""
        self._check_query_rows("q", q, self.shape.dtype, num_rows, self.shape.head_dim_qk)
        cache = self.check_kv_cache(kv_cache)
        if out is not None:
            self._check_query_rows("out", out, self.shape.out_dtype, num_rows, self.shape.head_dim_vo)
        if lse is not None:
            self.check_lse(lse, num_rows)
        num_qo_heads, head_dim = self.shape.num_qo_heads, self.shape.head_dim_vo
        out_strides = (num_qo_heads * head_dim, head_dim) if out is None else (out.stride(0), out.stride(1))
        num_tensor_rows = min(tensor.shape[0] for tensor in (q, out, lse) if tensor is not None)
        args = _core.RunArgs(
            CORE_DTYPES[q.dtype],
            *(0, q.stride(0), q.stride(1)),
            *(0, *cache.k[1:]),
            *(0, *cache.v[1:]),
            cache.num_pages,
            *(0, *out_strides),
            num_tensor_rows,
            0,
            *(0.0, 1.0, 1.0),
            *(0, 0, 0),
            CORE_DTYPES[self.shape.kv_dtype],
            CORE_DTYPES[self.shape.out_dtype],
        )
        layout = layout_of(q, kv_cache, out, lse, return_lse)
        return CheckedTensors(
            layout, num_tensor_rows, cache.num_pages, cache.v.address - cache.k.address, args
        )

    def _check_query_rows(
        self, name: str, tensor: torch.Tensor, dtype: torch.dtype, num_rows: int, head_dim: int
    ) -> None:
        """q or out: [at least num_rows, num_qo_heads, head_dim]."""
        check_tensor(name, tensor, dtype=dtype, devices=self._devices, num_dims=3)
        check_shape(
            name, tensor, (None, self.shape.num_qo_heads, head_dim), "total_qo_len, num_qo_heads, head_dim"
        )
        self._check_num_rows(name, tensor, num_rows)
        check_rows_aligned(name, tensor)

    def check_lse(self, tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
        """[at least num_rows, num_qo_heads], contiguous float32."""
        check_tensor("lse", tensor, dtype=torch.float32, devices=self._devices, num_dims=2)
        check_shape("lse", tensor, (None, self.shape.num_qo_heads), "total_qo_len, num_qo_heads")
        self._check_num_rows("lse", tensor, num_rows)
        if not tensor.is_contiguous():
            raise ValueError(f"lse has strides {tensor.stride()}; it must be contiguous")
        return tensor

    def check_kv_cache(self, kv_cache: KvTensors, name: str = "kv_cache") -> KvCache:
        """One tensor [num_pages, 2, page], or (k, v) of [num_pages, page] each; a page is [page_size, num_kv_heads,
        head_dim] in the NHD layout and [num_kv_heads, page_size, head_dim] in HND."""
        if isinstance(kv_cache, (tuple, list)):
            if len(kv_cache) != 2:
                raise ValueError(f"{name} has {len(kv_cache)} tensors; it must be one or a (k, v) pair")
            return self._check_pair(name, kv_cache[0], kv_cache[1])
        if not isinstance(kv_cache, torch.Tensor):
            raise TypeError(
                f"{name} is a {type(kv_cache).__name__}; it must be a torch.Tensor or a (k, v) pair"
            )
        if self._k_page != self._v_page:
            raise ValueError(f"{name} is one tensor; it must be a (k, v) pair where their head_dims differ")
        self._check_cache_tensor(name, kv_cache, 5, (None, 2, *self._k_page), "num_pages, 2")
        page_stride, v_offset, *row_strides = kv_cache.stride()
        strides = (page_stride, *row_strides)
        return KvCache(
            self._paged_rows(kv_cache, strides, 0),
            self._paged_rows(kv_cache, strides, v_offset),
            kv_cache.shape[0],
        )

    def check_sinks(self, sinks: torch.Tensor) -> torch.Tensor:
        """float32 [num_qo_heads], contiguous."""
        check_tensor("sinks", sinks, dtype=torch.float32, devices=self._devices, num_dims=1)
        check_shape("sinks", sinks, (self.shape.num_qo_heads,), "num_qo_heads")
        if not sinks.is_contiguous():
            raise ValueError(f"sinks has strides {sinks.stride()}; it must be contiguous")
        return sinks

    def _check_num_rows(self, name: str, tensor: torch.Tensor, num_rows: int) -> None:
        if tensor.shape[0] < num_rows:
            raise ValueError(f"{name} has {tensor.shape[0]} rows; it must have the plan's {num_rows} or more")

    def _check_pair(self, name: str, k: torch.Tensor, v: torch.Tensor) -> KvCache:
        for i, (tensor, page) in enumerate(((k, self._k_page), (v, self._v_page))):
            self._check_cache_tensor(f"{name}[{i}]", tensor, 4, (None, *page), "num_pages")
        if k.shape[0] != v.shape[0]:
            raise ValueError(
                f"{name} has {k.shape[0]} pages of k and {v.shape[0]} of v; it must have as many"
            )
        return KvCache(self._paged_rows(k, k.stride(), 0), self._paged_rows(v, v.stride(), 0), k.shape[0])

    def _check_cache_tensor(
        self, name: str, tensor: torch.Tensor, num_dims: int, wanted: tuple[int | None, ...], leading: str
    ) -> None:
        check_tensor(name, tensor, dtype=self.shape.kv_dtype, devices=self._devices, num_dims=num_dims)
        check_shape(name, tensor, wanted, f"{leading}, {self._page_meaning}")
        if tensor.shape[0] > MAX_INT32:
            raise ValueError(f"{name} has {tensor.shape[0]} pages; it must have at most {MAX_INT32}")
        check_rows_aligned(name, tensor)

    def _paged_rows(self, tensor: torch.Tensor, strides: tuple[int, ...], offset: int) -> PagedRows:
        page, token, head = self._positions
        address = tensor.data_ptr() + offset * tensor.element_size()
        return PagedRows(address, strides[page], strides[token], strides[head])
