"""Merging results of attention over parts of the keys, as FlashInfer's module of this name does: of a prefix that
requests share and of what follows it, or of keys that are split over GPUs.

With s_i the log-sum-exp of the scores over part i in base 2, and v_i the output over it,

    s = log2(sum_i 2^s_i)        v = sum_i 2^(s_i - s) v_i

(FlashInfer's documentation, "Attention States and Recursive Attention"). BatchAttention.run() returns such (v, s) as
(out, lse). A part without keys has an s of -inf and counts for nothing, whatever its v; where there is no other, v is 0
and s is -inf.

Rows of v start at multiples of 16 bytes and have a stride of 1; other strides may be any. Sums are float32.

Cost of each: one launch on the current stream, which reads each v once and writes one; it never synchronises, and
allocates only an `out` or `lse` that is None. Safe in a CUDA graph. The first call on a device loads the kernel, also
during a capture, of which that is no part. All raise ValueError or TypeError for arguments, onewave.DeviceError for a
GPU that is not Hopper.
"""

import math
from typing import NamedTuple

import torch

from onewave import _core
from onewave._engine import current_stream
from onewave._tensors import check_first_rows, check_rows
from onewave._validate import check_int, check_shape, check_tensor
from onewave.workspace import CORE_DTYPES


class _States(NamedTuple):
    """[seq_len, num_states, num_heads, head_dim] and, float32, [seq_len, num_states, num_heads]."""

    v: torch.Tensor
    s: torch.Tensor

    def to_core(self) -> _core.StateSet:
        v, s = self.v, self.s
        v_strides = (v.stride(0), v.stride(1), v.stride(2))
        s_strides = (s.stride(0), s.stride(1), s.stride(2))
        return _core.StateSet(v.data_ptr(), *v_strides, s.data_ptr(), *s_strides, v.shape[1])


def merge_state(
    v_a: torch.Tensor,
    s_a: torch.Tensor,
    v_b: torch.Tensor,
    s_b: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two states into one. Returns (v, s), or (out, lse) where they are given.

    v_a, v_b, out: [seq_len, num_heads, head_dim] of bfloat16, float16 or float32; head_dim is any multiple of 16 bytes.
    s_a, s_b, lse: float32 [seq_len, num_heads].

    `out` may be v_a or v_b itself, and `lse` s_a or s_b. Costs and errors: see the module.
    """
    _check_state(("v_a", v_a), ("s_a", s_a), ("v_b", v_b), ("s_b", s_b))
    out, lse = _outputs(v_a, tuple(v_a.shape), out, lse)
    _merge(_one_state(v_a, s_a), _one_state(v_b, s_b), out, lse, None)
    return out, lse


def merge_state_in_place(
    v: torch.Tensor,
    s: torch.Tensor,
    v_other: torch.Tensor,
    s_other: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> None:
    """Merges (v_other, s_other) into (v, s); shapes as for merge_state().

    mask: bool [seq_len]; rows of False stay as they are. None: all are merged.

    Allocates nothing. Costs and errors: see the module.
    """
    _check_state(("v", v), ("s", s), ("v_other", v_other), ("s_other", s_other))
    if mask is not None:
        check_tensor("mask", mask, dtype=torch.bool, devices=(v.device,), num_dims=1)
        check_shape("mask", mask, (v.shape[0],), "seq_len")
        if not mask.is_contiguous():
            raise ValueError(f"mask has stride {mask.stride(0)}; it must be contiguous")
    _merge(_one_state(v, s), _one_state(v_other, s_other), v, s, mask)


def merge_states(
    v: torch.Tensor,
    s: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Any number of states into one. Returns (v, s), or (out, lse) where they are given.

    v: [seq_len, num_states, num_heads, head_dim] of bfloat16, float16 or float32; head_dim is any multiple of 16 bytes.
    s: float32 [seq_len, num_states, num_heads].
    out: [seq_len, num_heads, head_dim] of v's type. lse: float32 [seq_len, num_heads].

    Results of GPUs that each computed a part of the keys lie as [num_states, seq_len, ...] after a gather: their
    transpose(0, 1) is taken as it is. Costs and errors: see the module.
    """
    check_first_rows("v", v, 4)
    seq_len, num_states, num_heads, head_dim = v.shape
    check_int("num_heads", num_heads, 1)
    check_tensor("s", s, dtype=torch.float32, devices=(v.device,), num_dims=3)
    check_shape("s", s, (seq_len, num_states, num_heads), "seq_len, num_states, num_heads, those of v")
    out, lse = _outputs(v, (seq_len, num_heads, head_dim), out, lse)
    _merge(_States(v, s), None, out, lse, None)
    return out, lse


NamedTensor = tuple[str, torch.Tensor]


def _check_state(v: NamedTensor, s: NamedTensor, v_other: NamedTensor, s_other: NamedTensor) -> None:
    (v_name, first), shape_of = v, f"those of {v[0]}"
    check_first_rows(v_name, first, 3)
    seq_len, num_heads, head_dim = first.shape
    check_int("num_heads", num_heads, 1)
    check_rows(*v_other, first, (seq_len, num_heads, head_dim), f"seq_len, num_heads, head_dim, {shape_of}")
    for name, tensor in (s, s_other):
        check_tensor(name, tensor, dtype=torch.float32, devices=(first.device,), num_dims=2)
        check_shape(name, tensor, (seq_len, num_heads), f"seq_len, num_heads, {shape_of}")


def _outputs(
    v: torch.Tensor, shape: tuple[int, ...], out: torch.Tensor | None, lse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those given, checked, or new ones."""
    if out is None:
        out = torch.empty(shape, dtype=v.dtype, device=v.device)
    else:
        check_rows("out", out, v, shape, "seq_len, num_heads, head_dim")
    if lse is None:
        lse = torch.empty(shape[:2], dtype=torch.float32, device=v.device)
    else:
        check_tensor("lse", lse, dtype=torch.float32, devices=(v.device,), num_dims=2)
        check_shape("lse", lse, shape[:2], "seq_len, num_heads")
    return out, lse


def _one_state(v: torch.Tensor, s: torch.Tensor) -> _States:
    return _States(v.unsqueeze(1), s.unsqueeze(1))


def _merge(
    first: _States, second: _States | None, out: torch.Tensor, lse: torch.Tensor, mask: torch.Tensor | None
) -> None:
    if out.device.type == "cpu":
        _merge_on_cpu([first] if second is None else [first, second], out, lse, mask)
        return
    _core.merge_states(
        out.device.index,
        CORE_DTYPES[out.dtype],
        *(out.shape[0], out.shape[1], out.shape[2]),
        first.to_core(),
        _no_states() if second is None else second.to_core(),
        _core.RowTensor(out.data_ptr(), out.stride(0), out.stride(1)),
        *(lse.data_ptr(), lse.stride(0), lse.stride(1)),
        0 if mask is None else mask.data_ptr(),
        current_stream(out.device),
    )


def _no_states() -> _core.StateSet:
    """Not a constant: one that lives until the interpreter ends counts as leaked."""
    return _core.StateSet(0, 0, 0, 0, 0, 0, 0, 0, 0)


def _merge_on_cpu(
    states: list[_States], out: torch.Tensor, lse: torch.Tensor, mask: torch.Tensor | None
) -> None:
    """What cuda/merge_states.cu does, in torch."""
    s = torch.cat([state.s for state in states], 1)
    v = torch.cat([state.v for state in states], 1).float().masked_fill_(s.isneginf()[..., None], 0.0)
    # With a state of no keys more, so that there is a maximum.
    m = torch.nn.functional.pad(s, (0, 0, 0, 1), value=-math.inf).amax(1)
    weights = torch.exp2(s - m.masked_fill(m.isneginf(), 0.0)[:, None])
    total = weights.sum(1)
    merged = torch.einsum("tsh,tshd->thd", weights, v) / total.masked_fill(total == 0, 1.0)[..., None]
    rows = slice(None) if mask is None else mask
    out[rows] = merged[rows].to(out.dtype)
    lse[rows] = (m + total.log2())[rows]
