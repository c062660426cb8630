"""The scales of a run: factors of all scores and outputs, for an fp8 cache of its rows, and for fp8 queries theirs."""

from typing import TYPE_CHECKING, Any

import torch

from onewave._validate import check_positive_float, check_shape, check_tensor, describe
from onewave.workspace import FP8

if TYPE_CHECKING:
    from onewave._tensors import Shape

Scale = float | torch.Tensor | None
# Of the factors of K's or V's rows: strides by page, group of tokens and head in elements, and the tokens of a group.
KvStrides = tuple[int, int, int, int]
ONE_FACTOR: KvStrides = (0, 0, 0, 1)


class ScaleChecker:
    """Checks scales against the shape and layout of a cache on one of the devices."""

    def __init__(self, devices: tuple[torch.device, ...], kv_layout: str, shape: "Shape") -> None:
        self._devices = devices
        self._page_size = shape.page_size
        self._num_kv_heads = shape.num_kv_heads
        self._is_fp8 = shape.kv_dtype == FP8
        self._q_dtype = shape.dtype
        self._is_nhd = kv_layout == "NHD"
        self._group_meaning = (
            f"num_pages, {'num_groups, num_kv_heads' if self._is_nhd else 'num_kv_heads, num_groups'}"
        )

    def check(
        self, sm_scale: Scale, k_scale: Scale, v_scale: Scale, q_scale: Scale, num_pages: int
    ) -> tuple[Any, ...]:
        """Of a run with a cache of `num_pages` pages, as RunArgs.set_scales() takes them: three factors, the first in
        place of the plan's (0: it stays) and the second of q too, the addresses of three others on the device (0: none),
        the strides of the last two, and the address of q's and their stride."""
        sm_factor, sm_address = (0.0, 0) if sm_scale is None else self._one_factor("sm_scale", sm_scale)
        k_factor, k_address, k_strides = self._factors("k_scale", k_scale, num_pages)
        v_factor, v_address, v_strides = self._factors("v_scale", v_scale, num_pages)
        q_address, q_stride = 0, 0
        if q_scale is not None:
            q_factor, q_address, q_stride = self._query_factors(q_scale)
            k_factor = check_positive_float("k_scale * q_scale", k_factor * q_factor)
        factors = (sm_factor, k_factor, v_factor)
        return *factors, sm_address, k_address, v_address, *k_strides, *v_strides, q_address, q_stride

    def _query_factors(self, scale: float | torch.Tensor) -> tuple[float, int, int]:
        """One, or an address and the stride from a kv head to the next."""
        if self._q_dtype != FP8:
            raise ValueError(
                f"q_scale is {describe(scale)}; it must be None where q_data_type is {self._q_dtype}: only queries of "
                f"{FP8} have one"
            )
        if isinstance(scale, torch.Tensor) and scale.dim() == 1 and scale.numel() != 1:
            check_tensor("q_scale", scale, dtype=torch.float32, devices=self._devices, num_dims=1)
            check_shape("q_scale", scale, (self._num_kv_heads,), "num_kv_heads")
            return 1.0, scale.data_ptr(), scale.stride(0)
        return *self._one_factor("q_scale", scale), 0

    def _one_factor(self, name: str, scale: Scale) -> tuple[float, int]:
        if scale is None:
            return 1.0, 0
        if isinstance(scale, torch.Tensor):
            if scale.numel() != 1:
                raise ValueError(
                    f"{name} has shape {tuple(scale.shape)}; it must have one element{self._other_shapes(name)}"
                )
            check_tensor(name, scale, dtype=torch.float32, devices=self._devices, num_dims=scale.dim())
            return 1.0, scale.data_ptr()
        return check_positive_float(name, scale, " or a float32 tensor of one element"), 0

    def _other_shapes(self, name: str) -> str:
        """What else it may be, for the message."""
        if name == "sm_scale":
            return ""
        if name == "q_scale":
            return f", or be [{self._num_kv_heads}]: num_kv_heads"
        if self._is_fp8:
            return f", or be [{self._num_kv_heads}]: num_kv_heads, or [{self._group_meaning}]"
        return f": only a cache of {FP8} has more"

    def _factors(self, name: str, scale: Scale, num_pages: int) -> tuple[float, int, KvStrides]:
        is_by_row = self._is_fp8 and isinstance(scale, torch.Tensor) and scale.numel() != 1
        if not is_by_row or not isinstance(scale, torch.Tensor) or scale.dim() not in (1, 3):
            return *self._one_factor(name, scale), ONE_FACTOR
        check_tensor(name, scale, dtype=torch.float32, devices=self._devices, num_dims=scale.dim())
        if scale.dim() == 1:
            check_shape(name, scale, (self._num_kv_heads,), "num_kv_heads")
            return 1.0, scale.data_ptr(), (0, 0, scale.stride(0), 1)
        return 1.0, scale.data_ptr(), self._group_strides(name, scale, num_pages)

    def _group_strides(self, name: str, scale: torch.Tensor, num_pages: int) -> KvStrides:
        heads = self._num_kv_heads
        check_shape(
            name, scale, (None, None, heads) if self._is_nhd else (None, heads, None), self._group_meaning
        )
        if scale.shape[0] < num_pages:
            raise ValueError(
                f"{name} has {scale.shape[0]} pages; it must have the {num_pages} of kv_cache or more"
            )
        num_groups = scale.shape[1 if self._is_nhd else 2]
        if num_groups == 0 or self._page_size % num_groups != 0:
            raise ValueError(
                f"{name} has {num_groups} groups of tokens in a page; they must divide page_size = {self._page_size}"
            )
        # A stride that is never taken may be anything.
        page, *inner = (
            stride if size > 1 else 0 for stride, size in zip(scale.stride(), scale.shape, strict=True)
        )
        group, head = inner if self._is_nhd else reversed(inner)
        return page, group, head, self._page_size // num_groups
