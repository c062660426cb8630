"""Writing new keys and values into the pages of a cache, as FlashInfer's module of this name does."""

import math
from typing import Any

import torch

from onewave import _core
from onewave._engine import current_stream
from onewave._tensors import Shape, TensorChecker, check_first_rows, check_row_bytes, check_rows
from onewave._validate import (
    check_device,
    check_index_array,
    check_int,
    check_kv_layout,
    check_positive_float,
    check_shape,
    check_tensor,
    describe,
)
from onewave.workspace import CORE_DTYPES, FP8

KvCacheTensors = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
# Of all rows that are quantised, or a float32 tensor [num_kv_heads].
Scale = float | torch.Tensor


def append_paged_kv_cache(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    paged_kv_cache: KvCacheTensors,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
    kv_layout: str = "NHD",
    *,
    k_scale: Scale | None = None,
    v_scale: Scale | None = None,
) -> None:
    """Writes row i of the new keys and values to token positions[i] of request batch_indices[i]: token
    positions[i] % page_size of page kv_indices[kv_indptr[batch_indices[i]] + positions[i] // page_size].

    append_key, append_value: [nnz, num_kv_heads, head_dim] of bfloat16, float16, float32 or float8_e4m3fn. Their
        head_dims may differ; each is any multiple of 16 bytes, also as the cache has it.
    batch_indices, positions: int32 [nnz], as `get_batch_indices_positions` makes them.
    paged_kv_cache: [num_pages, 2, page_size, num_kv_heads, head_dim] (HND: heads before tokens), or a (k, v) pair of
        such tensors without the second dimension, with any strides and any page_size. Of the rows' dtype, or
        float8_e4m3fn, to which rows of 16 or 32 bits are then quantised.
    kv_indices: int32, page ids. kv_indptr: int32 [batch_size + 1], where those of each request begin. The new rows'
        pages are among them.
    kv_last_page_len: int32 [batch_size]. Checked, and not read: positions say it all.
    k_scale, v_scale: for rows that are quantised, the factors of run() that give them back: each element x is stored as
        x * (1 / scale) in float32, rounded to the nearest (ties to even), beyond 448 as 448; NaN stays NaN. A positive
        float, or a float32 tensor of one element or [num_kv_heads] on the same device, with any stride, which the
        launch reads. None: 1.

    A row whose batch index, position or page id is out of range (of kv_indptr, of the request's pages, of the cache) is
    skipped, so that a graph's padding rows take a batch index of -1. Of two rows for one place any mix stays. Rows
    start at multiples of 16 bytes and have a stride of 1.

    Cost: one launch on the current stream; it reads each row once and writes it once. It never synchronises nor
    allocates, and a CUDA graph bakes in addresses, strides and shapes alone: what is in the tensors is read by each
    replay. The first call on a device loads the kernel, also during a capture, of which that is no part. Raises
    ValueError or TypeError for arguments, onewave.DeviceError for a GPU that is not Hopper.
    """
    check_kv_layout(kv_layout)
    device = check_first_rows("append_key", append_key, 3, CORE_DTYPES)
    nnz, num_kv_heads, head_dim = append_key.shape
    is_rows = isinstance(append_value, torch.Tensor) and append_value.dim() == 3
    head_dim_vo = append_value.shape[2] if is_rows else head_dim
    meaning = "those of append_key, but for the last"
    check_rows("append_value", append_value, append_key, (nnz, num_kv_heads, head_dim_vo), meaning)
    check_first_rows("append_value", append_value, 3, CORE_DTYPES)
    check_index_array("kv_indices", kv_indices, (device,))
    batch_size = check_index_array("kv_last_page_len", kv_last_page_len, (device,)).numel()
    for name, tensor, size, meaning in (
        ("batch_indices", batch_indices, nnz, "the rows of append_key"),
        ("positions", positions, nnz, "the rows of append_key"),
        ("kv_indptr", kv_indptr, batch_size + 1, "batch_size + 1, by kv_last_page_len"),
    ):
        check_index_array(name, tensor, (device,))
        check_shape(name, tensor, (size,), meaning)
    check_int("num_kv_heads", num_kv_heads, 1)
    page_size = check_int("page_size", _page_size(paged_kv_cache, kv_layout), 1)
    kv_dtype = _kv_dtype(paged_kv_cache, append_key.dtype)
    dtypes = (append_key.dtype, kv_dtype, append_key.dtype)
    shape = Shape(num_kv_heads, num_kv_heads, head_dim, head_dim_vo, page_size, *dtypes)
    cache = TensorChecker(device, kv_layout, shape).check_kv_cache(paged_kv_cache, "paged_kv_cache")
    for columns in (head_dim, head_dim_vo):
        check_row_bytes("paged_kv_cache", columns, kv_dtype)
    is_quantised = kv_dtype != append_key.dtype
    scales = (
        _check_scale("k_scale", k_scale, device, num_kv_heads, is_quantised),
        _check_scale("v_scale", v_scale, device, num_kv_heads, is_quantised),
    )
    if device.type == "cpu":
        _append_on_cpu(
            append_key,
            append_value,
            batch_indices,
            positions,
            _pages(paged_kv_cache, kv_layout),
            kv_indices,
            kv_indptr,
            scales,
        )
        return
    _core.append_paged_kv_cache(
        device.index,
        *(CORE_DTYPES[append_key.dtype], CORE_DTYPES[kv_dtype]),
        *(num_kv_heads, head_dim, head_dim_vo, page_size),
        _core.RowTensor(append_key.data_ptr(), append_key.stride(0), append_key.stride(1)),
        _core.RowTensor(append_value.data_ptr(), append_value.stride(0), append_value.stride(1)),
        *(batch_indices.data_ptr(), positions.data_ptr()),
        *(nnz, batch_size),
        _core.PagedTensor(*cache.k),
        _core.PagedTensor(*cache.v),
        *(cache.num_pages, kv_indices.numel()),
        *(kv_indices.data_ptr(), kv_indptr.data_ptr()),
        *(_head_scales(scales[0]), _head_scales(scales[1])),
        current_stream(device),
    )


def get_batch_indices_positions(
    append_indptr: torch.Tensor, seq_lens: torch.Tensor, nnz: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The request and the position of each of `nnz` rows that are the last ones of their requests: (batch_indices,
    positions), int32 [nnz] each.

    append_indptr: int32 [batch_size + 1], where the new rows of each request begin; a request may have none.
    seq_lens: int32 [batch_size], keys of each request with its new rows.

    Rows from append_indptr[batch_size] on are padding: -1 in both, which append_paged_kv_cache() skips.

    Cost: a few launches of torch and their allocations; no synchronisation, so that a CUDA graph may contain it.
    Raises ValueError or TypeError for arguments.
    """
    check_int("nnz", nnz, 0)
    devices = (check_device("append_indptr", append_indptr),)
    check_index_array("append_indptr", append_indptr, devices)
    batch_size = check_index_array("seq_lens", seq_lens, devices).numel()
    check_shape("append_indptr", append_indptr, (batch_size + 1,), "batch_size + 1, by seq_lens")
    # Padding is one request more, whose place of positions is filled and then thrown away.
    rows = torch.arange(nnz, dtype=torch.int32, device=append_indptr.device)
    batch_indices = torch.searchsorted(append_indptr[1:], rows, right=True, out_int32=True)
    is_padding = batch_indices == batch_size
    lens_minus_ends = torch.nn.functional.pad(seq_lens - append_indptr[1:], (0, 1))
    positions = rows + lens_minus_ends[batch_indices]
    return batch_indices.masked_fill_(is_padding, -1), positions.masked_fill_(is_padding, -1)


def _first_tensor(paged_kv_cache: Any) -> torch.Tensor | None:
    """None for what is no cache, which its check then says."""
    first = (
        paged_kv_cache[0] if isinstance(paged_kv_cache, (tuple, list)) and paged_kv_cache else paged_kv_cache
    )
    return first if isinstance(first, torch.Tensor) else None


def _page_size(paged_kv_cache: Any, kv_layout: str) -> int:
    """As the cache has it; 1 for what is no cache."""
    first = _first_tensor(paged_kv_cache)
    if first is None or first.dim() < 3:
        return 1
    return first.shape[-3 if kv_layout == "NHD" else -2]


def _kv_dtype(paged_kv_cache: Any, dtype: torch.dtype) -> torch.dtype:
    """What the cache must have for rows of `dtype`."""
    first = _first_tensor(paged_kv_cache)
    return FP8 if first is not None and first.dtype == FP8 else dtype


def _check_scale(name: str, scale: Any, device: torch.device, num_kv_heads: int, is_quantised: bool) -> Scale:
    if scale is None:
        return 1.0
    if not is_quantised:
        raise ValueError(
            f"{name} is {describe(scale)}; it must be None where rows have the cache's dtype: they are copied"
        )
    if not isinstance(scale, torch.Tensor):
        number = check_positive_float(name, scale, " or a float32 tensor")
        check_positive_float(f"1 / {name}", 1 / number)
        return number
    check_tensor(name, scale, dtype=torch.float32, devices=(device,), num_dims=scale.dim())
    if scale.numel() != 1 and scale.shape != (num_kv_heads,):
        raise ValueError(
            f"{name} has shape {tuple(scale.shape)}; it must have one element or be [{num_kv_heads}]: num_kv_heads"
        )
    return scale


def _head_scales(scale: Scale) -> _core.HeadScales:
    if not isinstance(scale, torch.Tensor):
        return _core.HeadScales(scale=scale)
    return _core.HeadScales(scale.data_ptr(), scale.stride(0) if scale.numel() > 1 else 0)


def _pages(paged_kv_cache: KvCacheTensors, kv_layout: str) -> list[torch.Tensor]:
    """k and v as [page, token, head, column]."""
    pair = paged_kv_cache.unbind(1) if isinstance(paged_kv_cache, torch.Tensor) else paged_kv_cache
    return [pages if kv_layout == "NHD" else pages.transpose(1, 2) for pages in pair]


def _append_on_cpu(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    pages: list[torch.Tensor],
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    scales: tuple[Scale, Scale],
) -> None:
    """What cuda/append.cu and append_fp8.cu do, for all rows together. `pages`: k and v as [page, token, head, column]."""
    num_pages, page_size = pages[0].shape[:2]
    is_row = (batch_indices >= 0) & (batch_indices < kv_indptr.numel() - 1) & (positions >= 0)
    (rows,) = is_row.nonzero(as_tuple=True)
    request = batch_indices[rows].long()
    index = kv_indptr[request].long() + positions[rows] // page_size
    has_page = (index >= 0) & (index < kv_indptr[request + 1]) & (index < kv_indices.numel())
    rows, index = rows[has_page], index[has_page]
    page = kv_indices[index].long()
    is_in_cache = (page >= 0) & (page < num_pages)
    rows, page = rows[is_in_cache], page[is_in_cache]
    token = positions[rows].long() % page_size
    for cache, new, scale in zip(pages, (append_key, append_value), scales, strict=True):
        if cache.dtype == FP8:
            # As bytes: not every release of torch has indices of fp8.
            quantised = new if new.dtype == FP8 else _quantised(new, scale)
            cache.view(torch.uint8)[page, token] = quantised.view(torch.uint8)[rows]
        else:
            cache[page, token] = new[rows]


def _quantised(rows: torch.Tensor, scale: Scale) -> torch.Tensor:
    """[nnz, num_kv_heads, head_dim] in fp8, the same bits as the GPU's: it multiplies with 1 / scale, and a NaN that it
    multiplies has no sign."""
    factors = torch.as_tensor(scale, dtype=torch.float32).reshape(-1, 1).reciprocal()
    scaled = rows.float() * factors
    # Before the conversion, which saturates in some releases of torch and makes NaN of what is too large in others.
    return scaled.clamp(-448, 448).masked_fill_(scaled.isnan(), math.nan).to(FP8)
