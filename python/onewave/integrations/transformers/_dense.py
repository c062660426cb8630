"""Attention of a plain forward pass or generate(): a batch of sequences with K and V in one tensor each, read in place."""

import math
import threading
from typing import Any, NamedTuple

import torch

from onewave.attention import BatchAttention
from onewave.integrations.transformers._library import check_known, sinks_of

# Bytes of masks that the first plan has room for; more doubles them.
MIN_MASK_BYTES = 1 << 20


class Plan(NamedTuple):
    """All that a plan depends on, but for its mask. A page is one token."""

    num_requests: int
    qo_len: int
    kv_len: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    dtype: torch.dtype
    request_stride: int  # in pages
    token_stride: int
    causal: bool
    sm_scale: float | None
    soft_cap: float | None


class _Planned:
    """A BatchAttention with its last plan."""

    def __init__(self) -> None:
        self._attention: BatchAttention | None = None
        self._max_mask_bytes = MIN_MASK_BYTES
        self._plan: Plan | None = None
        self._mask: torch.Tensor | None = None
        self._layer_idx = -1

    def attention_of(
        self, plan: Plan, mask: torch.Tensor | None, layer_idx: int, device: torch.device
    ) -> BatchAttention:
        """Plans where the last plan was another, or might have been: a mask's memory may have been written anew before the
        next forward pass, whose layers begin from the first again."""
        is_planned = plan == self._plan and (mask is None or layer_idx > self._layer_idx)
        if self._attention is None or not is_planned or mask is not self._mask:
            self._plan = None
            self._attention = self._make_plan(plan, mask, device)
            self._plan, self._mask = plan, mask
        self._layer_idx = layer_idx
        return self._attention

    def _make_plan(self, plan: Plan, mask: torch.Tensor | None, device: torch.device) -> BatchAttention:
        attention = self._with_room(plan, mask, device)
        qo_indptr = plan.qo_len * torch.arange(plan.num_requests + 1, dtype=torch.int32)
        kv_indptr = plan.kv_len * torch.arange(plan.num_requests + 1, dtype=torch.int32)
        first_pages = plan.request_stride * torch.arange(plan.num_requests, dtype=torch.int32, device=device)
        tokens = plan.token_stride * torch.arange(plan.kv_len, dtype=torch.int32, device=device)
        attention.plan(
            qo_indptr,
            kv_indptr,
            (first_pages[:, None] + tokens).flatten(),
            torch.full((plan.num_requests,), plan.kv_len, dtype=torch.int32),
            plan.num_qo_heads,
            plan.num_kv_heads,
            plan.head_dim_qk,
            plan.head_dim_vo,
            1,
            causal=plan.causal,
            sm_scale=plan.sm_scale,
            logits_soft_cap=plan.soft_cap,
            q_data_type=plan.dtype,
            kv_data_type=plan.dtype,
            custom_mask=None if mask is None else mask.expand(plan.num_requests, -1, -1, -1).flatten(),
        )
        return attention

    def _with_room(self, plan: Plan, mask: torch.Tensor | None, device: torch.device) -> BatchAttention:
        """The BatchAttention, or one with room for a larger mask."""
        if mask is not None:
            # 128 keys of 128 packed rows are 8 bytes and 16 for each token.
            group_size = plan.num_qo_heads // plan.num_kv_heads
            tiles = -(-plan.qo_len * group_size // 128) + 1
            runs = plan.num_requests * -(-plan.kv_len // 128)
            num_bytes = runs * (8 * tiles + 16 * (plan.qo_len + tiles))
            if num_bytes > self._max_mask_bytes:
                self._max_mask_bytes = 1 << (num_bytes - 1).bit_length()
                self._attention = None
        if self._attention is None:
            self._attention = BatchAttention(device=device, max_mask_bytes=self._max_mask_bytes)
        return self._attention


# An object serves one thread and one stream.
_of_thread = threading.local()


def _planned_of(device: torch.device, sliding_window: int | None) -> _Planned:
    """Layers with a window have another mask than those without, in the same forward pass."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    planned: dict[Any, _Planned] = _of_thread.__dict__.setdefault("planned", {})
    return planned.setdefault((device, stream, sliding_window), _Planned())


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' registry, with the masks that it makes for torch's SDPA: bools, or None where
    all keys are seen, by later queries if there are several. query, key, value: [batch_size, heads, len, head_dim]; returns
    [batch_size, qo_len, heads, head_dim]."""
    check_known(kwargs)
    batch_size, num_qo_heads, qo_len, head_dim = query.shape
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(is_causal) and attention_mask is None and qo_len > 1
    if causal:
        # Beyond are keys of a static cache that nothing has written yet: SDPA aligns its first key with its first query.
        key, value = key[:, :, :qo_len], value[:, :, :qo_len]
    if _page_places(key) != _page_places(value):
        key, value = key.contiguous(), value.contiguous()
    plan = Plan(
        batch_size,
        qo_len,
        key.shape[2],
        num_qo_heads,
        key.shape[1],
        head_dim,
        value.shape[3],
        query.dtype,
        *_page_places(key),
        causal,
        scaling,
        softcap,
    )
    mask = _check_mask(attention_mask, plan)
    planned = _planned_of(query.device, sliding_window)
    attention = planned.attention_of(plan, mask, getattr(module, "layer_idx", -1), query.device)
    q = query.transpose(1, 2).reshape(-1, num_qo_heads, head_dim)
    kv_cache = _pages_of(key), _pages_of(value)
    out, _ = attention.run(q, kv_cache, sinks=sinks_of(module, s_aux), return_lse=False)
    return out.view(batch_size, qo_len, num_qo_heads, -1), None


def _strides(states: torch.Tensor) -> tuple[int, int]:
    """Elements from a request to the next and from a token to the next; 0 where there is one alone."""
    batch_size, _, num_tokens, _ = states.shape
    return states.stride(0) if batch_size > 1 else 0, states.stride(2) if num_tokens > 1 else 0


def _page_stride(states: torch.Tensor) -> int:
    """In elements: what divides the distance of any two tokens."""
    return math.gcd(*_strides(states)) or states.shape[3]


def _page_places(states: torch.Tensor) -> tuple[int, int]:
    """Pages from a request to the next and from a token to the next."""
    request_stride, token_stride = _strides(states)
    return request_stride // _page_stride(states), token_stride // _page_stride(states)


def _pages_of(states: torch.Tensor) -> torch.Tensor:
    """[num_pages, 1, heads, head_dim]: pages of one token, from the first to the last of [batch_size, heads, len,
    head_dim]."""
    batch_size, num_heads, num_tokens, head_dim = states.shape
    request_places, token_places = _page_places(states)
    num_pages = (batch_size - 1) * request_places + (num_tokens - 1) * token_places + 1
    page_stride = _page_stride(states)
    strides = (page_stride, page_stride, states.stride(1), states.stride(3))
    return states.as_strided((num_pages, 1, num_heads, head_dim), strides)


def _check_mask(mask: Any, plan: Plan) -> torch.Tensor | None:
    """[batch_size, 1, qo_len, kv_len]."""
    if mask is None:
        return None
    wanted = [plan.num_requests, 1, plan.qo_len, plan.kv_len]
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        kind = f"tensor of {mask.dtype}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise NotImplementedError(f"attention_mask is a {kind}; it must be a tensor of bools, {wanted}")
    if list(mask.shape) not in (wanted, [1, *wanted[1:]]):
        raise NotImplementedError(
            f"attention_mask has shape {list(mask.shape)}; it must have {wanted}: batch_size, 1, qo_len, kv_len"
        )
    return mask
