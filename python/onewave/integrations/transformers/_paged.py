"""Attention over the paged cache of transformers' continuous batching, in place: one plan for each kind of layers and step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from onewave.attention import BatchAttention
from onewave.integrations.transformers._cache import (
    SLIDING,
    LayerGroup,
    PagedCache,
    is_paged_cache,
)
from onewave.integrations.transformers._library import check_known, sinks_of
from onewave.integrations.transformers._stopwatch import Stopwatch
from onewave.page import append_paged_kv_cache


class LayerKind(NamedTuple):
    """Layers of one plan."""

    group: LayerGroup
    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    page_size: int
    dtype: torch.dtype
    sm_scale: float | None
    soft_cap: float | None
    sliding_window: int | None  # tokens that a query sees, with itself


class Pages(NamedTuple):
    """What a plan reads of a group, and where the new rows go. Lengths are on the host, the rest on the device; all int32."""

    kv_lens: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    device_kv_lens: torch.Tensor
    device_kv_indptr: torch.Tensor
    batch_indices: torch.Tensor  # of each new row
    positions: torch.Tensor


class PagedAttention:
    """The BatchAttentions of one model's generation, and its forward pre-hook, by which a step begins."""

    def __init__(self, stopwatch: Stopwatch | None) -> None:
        self._stopwatch = stopwatch
        self._attentions: dict[LayerKind, BatchAttention] = {}

    def begin_step(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward pre-hook with kwargs: puts a PagedStep in place of transformers' paged cache."""
        cache = kwargs.get("cache")
        if not is_paged_cache(cache):
            return args, kwargs
        if self._stopwatch is not None:
            self._stopwatch.begin_step()
        return args, {**kwargs, "cache": PagedStep(self, PagedCache(cache), kwargs)}

    def attention_of(self, kind: LayerKind, device: torch.device, max_batch_tokens: int) -> BatchAttention:
        attention = self._attentions.get(kind)
        if attention is None:
            attention = BatchAttention(
                device=device, max_batch_size=max_batch_tokens, max_total_qo_len=max_batch_tokens
            )
            self._attentions[kind] = attention
        return attention

    def span(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self._stopwatch is None else self._stopwatch.span(name)

    def host_span(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self._stopwatch is None else self._stopwatch.host_span(name)


class PagedStep:
    """One forward pass of continuous batching, in whose calls it stands for transformers' cache.

    All layers of the pass see this object and no other pass does, so it knows for which kinds of layers the pass is planned.
    """

    def __init__(self, owner: PagedAttention, cache: PagedCache, arguments: dict[str, Any]) -> None:
        _check_arguments(arguments)
        self._owner = owner
        self._cache = cache
        self._read_index = arguments["read_index"]
        self._write_index = arguments["write_index"]
        qo_indptr, kv_indptrs = arguments["cu_seq_lens_q"], arguments["cu_seq_lens_k"]
        if qo_indptr.is_cuda:
            # transformers writes a step's inputs on the default stream and computes on another, which does not wait for it.
            device = qo_indptr.device
            torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))
        # 5.17 has no name for the layers where all are of one type.
        self._kv_types = list(kv_indptrs) if isinstance(kv_indptrs, dict) else []
        rows = list(kv_indptrs.values()) if isinstance(kv_indptrs, dict) else [kv_indptrs]
        # One synchronisation; transformers has just waited for the step before.
        lens = torch.stack([qo_indptr, *rows]).to("cpu", torch.int32)
        self._qo_indptr, self._kv_indptrs = lens[0], lens[1:]
        self._pages: dict[tuple[LayerGroup, int], Pages] = {}
        self._planned: dict[LayerKind, BatchAttention] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What models of 5.24 and later call before the attention function, which does the work and finds the step where
        earlier ones have it."""
        kwargs["cache"] = self
        return key, value

    def attend(
        self,
        layer_idx: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sm_scale: float | None,
        soft_cap: float | None,
        sliding_window: int | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """query, key, value: [total_qo_len, heads, head_dim], those of the step's new tokens. Returns [total_qo_len,
        num_qo_heads, head_dim]."""
        group = self._cache.group_of(layer_idx)
        is_sliding = group.layer_type == SLIDING
        if is_sliding:
            if not sliding_window:
                raise NotImplementedError(
                    f"layer {layer_idx} has a cache of a sliding window and gives its attention no sliding_window"
                )
            with self._owner.span("append"):
                k_rows, v_rows = self._cache.write_and_gather(
                    key, value, layer_idx, self._read_index, self._write_index
                )
            # Rows that no page table orders: each is a page.
            kv_cache = k_rows.unsqueeze(1), v_rows.unsqueeze(1)
        else:
            kv_cache = self._cache.pages_of(layer_idx)
        kind = LayerKind(
            group,
            query.shape[1],
            key.shape[1],
            query.shape[2],
            value.shape[2],
            kv_cache[0].shape[1],
            query.dtype,
            sm_scale,
            soft_cap,
            sliding_window or None,
        )
        attention = self._planned.get(kind)
        if attention is None:
            with self._owner.host_span("plan"):
                attention = self._plan(kind, query.device)
        if not is_sliding:
            with self._owner.span("append"):
                self._append(self._pages[group, kind.page_size], key, value, kv_cache)
        with self._owner.span("run"):
            out, _ = attention.run(query, kv_cache, sinks=sinks, return_lse=False)
        return out

    def _plan(self, kind: LayerKind, device: torch.device) -> BatchAttention:
        attention = self._owner.attention_of(kind, device, self._cache.max_batch_tokens)
        pages = self._pages.get((kind.group, kind.page_size))
        if pages is None:
            pages = self._pages[kind.group, kind.page_size] = self._make_pages(
                kind.group, kind.page_size, device
            )
        attention.plan(
            self._qo_indptr,
            pages.kv_indptr,
            pages.kv_indices,
            pages.kv_lens,
            kind.num_qo_heads,
            kind.num_kv_heads,
            kind.head_dim_qk,
            kind.head_dim_vo,
            kind.page_size,
            causal=True,
            sm_scale=kind.sm_scale,
            logits_soft_cap=kind.soft_cap,
            q_data_type=kind.dtype,
            kv_data_type=kind.dtype,
            window_left=-1 if kind.sliding_window is None else kind.sliding_window - 1,
        )
        self._planned[kind] = attention
        return attention

    def _make_pages(self, group: LayerGroup, page_size: int, device: torch.device) -> Pages:
        kv_begins = self._kv_indptrs[self._kv_types.index(group.layer_type) if self._kv_types else 0]
        kv_lens, qo_lens = kv_begins.diff(), self._qo_indptr.diff()
        num_pages = (kv_lens + page_size - 1) // page_size
        kv_indptr = torch.nn.functional.pad(num_pages.cumsum(0, dtype=torch.int32), (1, 0))
        requests = torch.arange(len(kv_lens), dtype=torch.int32)
        batch_indices = requests.repeat_interleave(qo_lens)
        positions = torch.arange(len(batch_indices), dtype=torch.int32)
        positions += (kv_lens - qo_lens - self._qo_indptr[:-1])[batch_indices]
        page_requests = requests.repeat_interleave(num_pages)
        places = torch.arange(len(page_requests), dtype=torch.int32) - kv_indptr[page_requests]
        first_tokens = kv_begins[page_requests] + page_size * places
        parts = (kv_lens, kv_indptr, batch_indices, positions, first_tokens)
        on_device = _upload(parts, device)
        if group.layer_type == SLIDING:
            kv_indices = on_device[-1]
        else:
            kv_indices = (self._token_index(group, int(kv_begins[-1]))[on_device[-1]] // page_size).int()
        return Pages(kv_lens, kv_indptr, kv_indices, *on_device[:-1])

    def _token_index(self, group: LayerGroup, total_kv_len: int) -> torch.Tensor:
        """Where each key of the step is in its layer's cache. No read_index: nothing is in the cache yet."""
        read_index: torch.Tensor = self._read_index[group.group_idx]
        index = read_index if read_index.numel() > 0 else self._write_index[group.group_idx]
        if index.numel() != total_kv_len:
            raise RuntimeError(
                f"transformers' read_index has {index.numel()} tokens and its cu_seq_lens_k ends at {total_kv_len}; they must "
                "be equal, which they are without CUDA graphs and torch.compile"
            )
        return index

    def _append(
        self,
        pages: Pages,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        append_paged_kv_cache(
            key,
            value,
            pages.batch_indices,
            pages.positions,
            kv_cache,
            pages.kv_indices,
            pages.device_kv_indptr,
            # For the last page's length, which is not read.
            pages.device_kv_lens,
        )


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Of the model, in a step."""
    missing = [
        name
        for name in ("read_index", "write_index", "cu_seq_lens_q", "cu_seq_lens_k")
        if name not in arguments
    ]
    if missing:
        raise RuntimeError(f"transformers' continuous batching gives its model no {', '.join(missing)}")
    if arguments.get("block_table") is not None:
        raise NotImplementedError("block_table is given; onewave takes continuous batching's read_index")


def paged_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' registry. query, key, value: [1, heads, total_qo_len, head_dim]; returns [1,
    total_qo_len, heads, head_dim]."""
    check_known(kwargs)
    if not isinstance(cache, PagedStep):
        raise TypeError(
            f"cache is a {type(cache).__name__}; this attention function is for models inside "
            'onewave.integrations.transformers.continuous_batching(), and attn_implementation="onewave" for all others'
        )
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    sinks = sinks_of(module, s_aux)
    out = cache.attend(module.layer_idx, q, k, v, scaling, softcap, sliding_window, sinks)
    return out.unsqueeze(0), None


def _upload(parts: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """int32 tensors on the device, in one copy."""
    if device.type == "cpu":
        return parts
    packed = torch.cat(parts).pin_memory().to(device, non_blocking=True)
    return torch.split(packed, [len(part) for part in parts])
