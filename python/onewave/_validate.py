"""Checks of arguments. Each error names the argument, what it was and what it must be: TypeError for something of
another kind, ValueError for a tensor or number that does not fit."""

import ctypes
import math
import operator
from numbers import Real
from typing import Any

import torch

# Rows are read by 16-byte copies.
ROW_ALIGNMENT = 16
MAX_INT32 = 2**31 - 1


def check_int(name: str, value: Any, minimum: int, maximum: int = MAX_INT32) -> int:
    """`value` as an int, where it is one within [minimum, maximum]."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; it must be an int")
    number = operator.index(value)
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} is {number}; it must be from {minimum} to {maximum}")
    return number


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a bool")
    return value


def check_positive_float(name: str, value: Any, others: str = "") -> float:
    """A number of any type that is positive and finite as the float32 it is computed in. `others`: what else the
    argument may be, for the message."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {describe(value)}; it must be a float{others}")
    number = float(value)
    in_float32 = ctypes.c_float(number).value
    if not (math.isfinite(in_float32) and in_float32 > 0):
        raise ValueError(f"{name} is {number}; it must be positive and finite in float32")
    return number


def describe(value: Any) -> str:
    """A value for a message: itself, but only the type of a tensor, whose values a message has no room for."""
    return f"a {type(value).__name__}" if isinstance(value, torch.Tensor) else repr(value)


def check_unsupported(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    """For the arguments of FlashInfer's BatchAttention that have no meaning here yet."""
    if isinstance(value, torch.Tensor) or value not in neutral:
        raise NotImplementedError(
            f"{name} is {describe(value)}; it is not supported in this version and must be {neutral[0]!r}"
        )


def check_device(name: str, value: Any) -> torch.device:
    """That of a tensor on a GPU or the CPU, whose other arguments must be there too."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor")
    if value.device.type not in ("cuda", "cpu"):
        raise ValueError(f"{name} is on device {value.device}; it must be on a GPU or the CPU")
    return value.device


def check_no_grad(**arguments: Any) -> None:
    """For tensors, and tuples of them, that a backward would need: there is none. Grad mode alone is no mistake."""
    if not torch.is_grad_enabled():
        return
    for name, argument in arguments.items():
        for tensor in argument if isinstance(argument, (tuple, list)) else (argument,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                raise RuntimeError(
                    f"{name} requires grad; onewave is for inference and has no backward: "
                    "run under torch.inference_mode() or torch.no_grad()"
                )


def check_tensor(
    name: str, value: Any, *, dtype: torch.dtype, devices: tuple[torch.device, ...], num_dims: int
) -> torch.Tensor:
    """A tensor of this dtype and rank on one of these devices."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor")
    if value.dtype != dtype:
        raise ValueError(f"{name} has dtype {value.dtype}; it must be {dtype}")
    if value.device not in devices:
        wanted = " or ".join(str(device) for device in devices)
        raise ValueError(f"{name} is on device {value.device}; it must be on {wanted}")
    if value.dim() != num_dims:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must have {num_dims} dimensions")
    return value


def check_index_array(name: str, value: Any, devices: tuple[torch.device, ...]) -> torch.Tensor:
    """int32, of one dimension and contiguous, on one of these devices."""
    tensor = check_tensor(name, value, dtype=torch.int32, devices=devices, num_dims=1)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has stride {tensor.stride(0)}; it must be contiguous")
    return tensor


def check_kv_layout(kv_layout: Any) -> None:
    if kv_layout not in ("NHD", "HND"):
        raise ValueError(f"kv_layout is {kv_layout!r}; it must be 'NHD' or 'HND'")


def check_shape(name: str, tensor: torch.Tensor, wanted: tuple[int | None, ...], meaning: str) -> None:
    """`wanted`: a size for each dimension, None for any. `meaning`: the shape in words."""
    for size, actual in zip(wanted, tensor.shape, strict=True):
        if size is not None and size != actual:
            shown = ", ".join("any" if size is None else str(size) for size in wanted)
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be [{shown}]: {meaning}")


def check_rows_aligned(name: str, tensor: torch.Tensor) -> None:
    """Rows are contiguous and start at multiples of 16 bytes. A stride that is never taken may be anything."""
    if tensor.numel() == 0:
        return
    *outer_strides, last_stride = tensor.stride()
    if last_stride != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; the last one must be 1")
    if tensor.data_ptr() % ROW_ALIGNMENT != 0:
        raise ValueError(f"{name} starts at {tensor.data_ptr():#x}; it must start at a multiple of 16 bytes")
    bytes_per_element = tensor.element_size()
    # The last size has no partner: zip stops before it.
    for stride, size in zip(outer_strides, tensor.shape, strict=False):
        if stride * bytes_per_element % ROW_ALIGNMENT != 0 and size > 1:
            raise ValueError(
                f"{name} has strides {tensor.stride()} in elements of {bytes_per_element} bytes; "
                "all but the last must be multiples of 16 bytes"
            )
