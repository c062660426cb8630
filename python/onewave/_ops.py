"""BatchAttention.run() as an operator, which torch.compile puts into a graph as it is.

A graph holds tensors and numbers, and an attention is neither: the operator gets a number that stands for the object,
whose plan may be another one at each call. It writes to tensors that it is given and returns none, so there is nothing
for the fake implementation to make, and run() allocates what is missing in front of it in the same graph.
"""

import itertools
import weakref
from typing import TYPE_CHECKING, cast

import torch

from onewave._scales import Scale
from onewave._validate import check_no_grad

if TYPE_CHECKING:
    from onewave.attention import BatchAttention

KvPair = tuple[torch.Tensor, torch.Tensor]

_handles = itertools.count()
_attentions: "weakref.WeakValueDictionary[int, BatchAttention]" = weakref.WeakValueDictionary()


def make_handle(attention: "BatchAttention") -> int:
    """A number for the object, never given again; it does not keep the object alive."""
    handle = next(_handles)
    _attentions[handle] = attention
    return handle


def call_run(
    attention: int,
    q: torch.Tensor,
    kv_cache: torch.Tensor | KvPair,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    k_scale: Scale,
    v_scale: Scale,
    sm_scale: Scale,
    q_scale: Scale,
    enable_pdl: bool,
    window: int,
    sinks: torch.Tensor | None,
    natural_lse: bool,
) -> None:
    """What torch.compile traces."""
    torch.ops.onewave.run.default(
        attention,
        q,
        [kv_cache] if isinstance(kv_cache, torch.Tensor) else list(kv_cache),
        out,
        lse,
        *_split(k_scale),
        *_split(v_scale),
        *_split(sm_scale),
        *_split(q_scale),
        enable_pdl,
        window,
        sinks,
        natural_lse,
    )


def _split(scale: Scale) -> tuple[float | None, torch.Tensor | None]:
    return (None, scale) if isinstance(scale, torch.Tensor) else (scale, None)


def _run(
    attention: int,
    q: torch.Tensor,
    kv_cache: list[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor | None,
    k_scale: float | None,
    k_scale_tensor: torch.Tensor | None,
    v_scale: float | None,
    v_scale_tensor: torch.Tensor | None,
    sm_scale: float | None,
    sm_scale_tensor: torch.Tensor | None,
    q_scale: float | None,
    q_scale_tensor: torch.Tensor | None,
    enable_pdl: bool,
    window: int,
    sinks: torch.Tensor | None,
    natural_lse: bool,
) -> None:
    planned = _attentions.get(attention)
    if planned is None:
        raise RuntimeError(
            f"attention is {attention}, a BatchAttention that is gone; it must live as long as what was compiled with it"
        )
    planned._run(
        q,
        kv_cache[0] if len(kv_cache) == 1 else cast(KvPair, kv_cache),
        out,
        lse,
        k_scale if k_scale_tensor is None else k_scale_tensor,
        v_scale if v_scale_tensor is None else v_scale_tensor,
        sm_scale if sm_scale_tensor is None else sm_scale_tensor,
        q_scale if q_scale_tensor is None else q_scale_tensor,
        return_lse=lse is not None,
        enable_pdl=enable_pdl,
        window=window,
        sinks=sinks,
        natural_lse=natural_lse,
    )


def _fake_run(
    attention: int,
    q: torch.Tensor,
    kv_cache: list[torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor | None,
    k_scale: float | None,
    k_scale_tensor: torch.Tensor | None,
    v_scale: float | None,
    v_scale_tensor: torch.Tensor | None,
    sm_scale: float | None,
    sm_scale_tensor: torch.Tensor | None,
    q_scale: float | None,
    q_scale_tensor: torch.Tensor | None,
    enable_pdl: bool,
    window: int,
    sinks: torch.Tensor | None,
    natural_lse: bool,
) -> None:
    """Makes nothing. A compiled graph runs without grad mode, so gradients are refused while it is traced."""
    check_no_grad(
        q=q,
        kv_cache=kv_cache,
        out=out,
        lse=lse,
        k_scale=k_scale_tensor,
        v_scale=v_scale_tensor,
        sm_scale=sm_scale_tensor,
        q_scale=q_scale_tensor,
        sinks=sinks,
    )


# A SymInt, or each object would compile a graph of its own; a schema has no type for a number or a tensor.
torch.library.define(
    "onewave::run",
    "(SymInt attention, Tensor q, Tensor[] kv_cache, Tensor(a!) out, Tensor(b!)? lse, float? k_scale, "
    "Tensor? k_scale_tensor, float? v_scale, Tensor? v_scale_tensor, float? sm_scale, Tensor? sm_scale_tensor, "
    "float? q_scale, Tensor? q_scale_tensor, bool enable_pdl, int window, Tensor? sinks, bool natural_lse) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("onewave::run", "default", _run)
torch.library.register_fake("onewave::run", _fake_run)
