"""What a query sees beside all keys, and what becomes of its scores: the arguments of plan() that say so, checked and
as the planner takes them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from onewave._validate import MAX_INT32, check_device, check_int, check_positive_float, check_tensor

CPU = torch.device("cpu")


class Masks(NamedTuple):
    """Host tensors, in use until the planner is done."""

    causal: bool
    causal_arr: torch.Tensor | None  # uint8 [batch_size], in place of `causal`
    logits_soft_cap: float  # 0: none
    window_lefts: tuple[int, ...]  # one for each plan; -1: no window
    custom_mask: torch.Tensor | None  # uint8, the bits of all requests
    mask_indptr: torch.Tensor | None  # int64 [batch_size + 1], bytes

    def are_seen(self) -> tuple[bool, ...]:
        """Whether a run takes the kernel that looks at masks, for each window: PlanHeader::is_masked."""
        has_masks = self.logits_soft_cap > 0 or self.custom_mask is not None
        return tuple(has_masks or window_left >= 0 for window_left in self.window_lefts)

    def arguments(self) -> dict[str, Any]:
        """What the planner takes of them, beside windows."""
        arguments: dict[str, Any] = {"causal": self.causal}
        if self.causal_arr is not None:
            arguments["causal_arr"] = self.causal_arr.data_ptr()
        if self.logits_soft_cap > 0:
            arguments["logits_soft_cap"] = self.logits_soft_cap
        if self.custom_mask is not None and self.mask_indptr is not None:
            arguments["custom_mask"] = self.custom_mask.data_ptr()
            arguments["mask_indptr"] = self.mask_indptr.data_ptr()
        return arguments


def make_masks(
    num_windows: int,
    causal: bool | torch.Tensor,
    logits_soft_cap: float | None,
    window_left: int | Sequence[int],
    custom_mask: torch.Tensor | None,
    packed_custom_mask: torch.Tensor | None,
    mask_indptr: torch.Tensor | None,
    qo_indptr: torch.Tensor,
    kv_len_arr: torch.Tensor,
) -> Masks:
    """`qo_indptr` and `kv_len_arr` are checked, and on the host."""
    causal_arr = None
    if isinstance(causal, torch.Tensor):
        causal_arr = _check_causal_arr(causal, kv_len_arr.numel())
    elif not isinstance(causal, bool):
        raise TypeError(f"causal is {causal!r}; it must be a bool or a tensor of them")
    soft_cap = 0.0
    if isinstance(logits_soft_cap, torch.Tensor) or logits_soft_cap not in (None, 0):
        soft_cap = check_positive_float("logits_soft_cap", logits_soft_cap, " or None")
    window_lefts = _check_windows(num_windows, window_left)
    if custom_mask is None and packed_custom_mask is None:
        if mask_indptr is not None:
            raise ValueError("mask_indptr is given; it must be None without a packed_custom_mask")
        return Masks(causal is True, causal_arr, soft_cap, window_lefts, None, None)
    # Lengths below 0 are the planner's to refuse.
    num_bits = qo_indptr.diff().to(torch.int64).clamp(min=0) * kv_len_arr.clamp(min=0)
    if packed_custom_mask is None:
        if mask_indptr is not None:
            raise ValueError("mask_indptr is given; it must be None with a custom_mask, which has no bytes")
        packed, indptr = _pack(cast(torch.Tensor, custom_mask), num_bits)
    elif custom_mask is not None:
        raise ValueError("custom_mask and packed_custom_mask are given; one of them must be None")
    else:
        packed, indptr = _check_packed(packed_custom_mask, mask_indptr, num_bits)
    return Masks(causal is True, causal_arr, soft_cap, window_lefts, packed, indptr)


def _check_causal_arr(causal: torch.Tensor, batch_size: int) -> torch.Tensor:
    check_tensor("causal", causal, dtype=torch.bool, devices=(check_device("causal", causal),), num_dims=1)
    if causal.numel() != batch_size:
        raise ValueError(f"causal has {causal.numel()} elements; it must have the {batch_size} of kv_len_arr")
    return causal.to(CPU).contiguous().view(torch.uint8)


def _check_windows(num_windows: int, window_left: int | Sequence[int]) -> tuple[int, ...]:
    given = window_left if isinstance(window_left, (tuple, list)) else (window_left,)
    if len(given) != num_windows:
        raise ValueError(
            f"window_left has {len(given)} windows; it must have {num_windows}, the num_windows of the constructor"
        )
    return tuple(check_int("window_left", window, -1, MAX_INT32) for window in given)


def _indptr(num_bytes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(num_bytes.cumsum(0), (1, 0))


def _pack(custom_mask: torch.Tensor, num_bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits, each request's from a byte of its own on."""
    device = check_device("custom_mask", custom_mask)
    check_tensor("custom_mask", custom_mask, dtype=torch.bool, devices=(device,), num_dims=1)
    total = int(num_bits.sum())
    if custom_mask.numel() != total:
        raise ValueError(
            f"custom_mask has {custom_mask.numel()} elements; it must have {total}, qo_len * kv_len of each request"
        )
    num_bytes = (num_bits + 7) // 8
    # Where each bit goes: behind those of the requests before, which fill their last bytes.
    padding = 8 * num_bytes - num_bits
    shift = torch.nn.functional.pad(padding.cumsum(0)[:-1], (1, 0)) if len(num_bits) else padding
    positions = torch.arange(total) + shift.repeat_interleave(num_bits)
    bits = torch.zeros(8 * int(num_bytes.sum()), dtype=torch.uint8)
    bits[positions] = custom_mask.to(CPU).view(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    packed = (bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8)
    return _not_empty(packed), _indptr(num_bytes)


def _check_packed(
    packed: torch.Tensor, mask_indptr: torch.Tensor | None, num_bits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    device = check_device("packed_custom_mask", packed)
    check_tensor("packed_custom_mask", packed, dtype=torch.uint8, devices=(device,), num_dims=1)
    if mask_indptr is None:
        mask_indptr = _indptr((num_bits + 7) // 8)
    else:
        device = check_device("mask_indptr", mask_indptr)
        check_tensor("mask_indptr", mask_indptr, dtype=torch.int64, devices=(device,), num_dims=1)
        if mask_indptr.numel() != len(num_bits) + 1:
            raise ValueError(
                f"mask_indptr has {mask_indptr.numel()} elements; it must have {len(num_bits) + 1}, one more than "
                "there are requests"
            )
        mask_indptr = mask_indptr.to(CPU).contiguous()
    num_bytes = int(mask_indptr.max())
    if packed.numel() < num_bytes:
        raise ValueError(
            f"packed_custom_mask has {packed.numel()} bytes; it must have {num_bytes}, a bit for each query and key "
            "of a request from a byte of its own on"
        )
    return _not_empty(packed.to(CPU).contiguous()), mask_indptr


def _not_empty(packed: torch.Tensor) -> torch.Tensor:
    """An empty tensor has no address, which would say that there is no mask."""
    return packed if packed.numel() > 0 else packed.new_zeros(1)
