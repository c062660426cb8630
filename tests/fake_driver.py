"""The made-up driver of fake_driver.c, and a step for it: shared by the tests of the launcher."""

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest
from onewave import _core

NUM_CTAS = 8
WORKSPACE_ALIGNMENT = 128
PAGE_SIZE = 16
NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 2, 128
NUM_PAGES = 40
KV_LEN = 200
BFLOAT16_MAP, BYTES_MAP = 9, 0  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, _UINT8
# struct KernelParams of cuda/params.h, up to k_panel_map.
PARAMS = struct.Struct("<Q6iQQ4iQQQQQQ4fQQ3I4xQ3I4xQ128s")
# Its last members: of K's scales and of V's the strides of pages, groups and heads, and what a group is found by; of
# Q's that of heads.
SCALE_STRIDES, SCALE_STRIDES_OFFSET = struct.Struct("<qiiI4xqiiI4xi"), 832


class FakeDriver:
    """The made-up driver, loaded under the name that the library looks for."""

    def __init__(self, path: Path, **machine: int) -> None:
        self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, value in machine.items():
            self.set(name, value)

    def set(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, name).value


class MapRequest(ctypes.Structure):
    _fields_ = (
        ("data_type", ctypes.c_int),
        ("rank", ctypes.c_uint),
        ("address", ctypes.c_uint64),
        ("dims", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint * 5),
    )


class Step:
    """One decode of KV_LEN keys, in host memory that plays the device's."""

    def __init__(
        self,
        page_size: int = PAGE_SIZE,
        max_total_qo_len: int = 64,
        kv_dtype: _core.DType | None = None,
        head_dim: int = HEAD_DIM,
        dtype: _core.DType = _core.DType.BFLOAT16,
        out_dtype: _core.DType | None = None,
    ) -> None:
        self.limits = _core.PlanLimits(4, max_total_qo_len, 1024, NUM_CTAS)
        self.shape = _core.AttentionShape(
            NUM_QO_HEADS, NUM_KV_HEADS, head_dim, head_dim, page_size, dtype, kv_dtype, out_dtype
        )
        self.layout = _core.workspace_layout(self.limits, self.shape)
        self.memory = np.zeros(self.layout.total_bytes + WORKSPACE_ALIGNMENT, np.uint8)
        self.workspace = -(-self.memory.ctypes.data // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
        num_pages = -(-KV_LEN // page_size)
        self.arrays = tuple(np.array(a, np.int32) for a in ([0, 1], [0, num_pages], [KV_LEN]))
        self.attention = _core.DeviceAttention(0, self.limits, self.shape, self.workspace)

    @property
    def spec(self) -> tuple[bool, float, int, int, int, int, int]:
        qo_indptr, kv_indptr, kv_len_arr = (array.ctypes.data for array in self.arrays)
        return True, 0.1, 1, qo_indptr, kv_indptr, kv_len_arr, 0xBEEF0

    def plan(self, qo_len: int = 1, kv_len: int = KV_LEN) -> None:
        qo_indptr, _, kv_len_arr = self.arrays
        qo_indptr[1], kv_len_arr[0] = qo_len, kv_len
        self.attention.plan(*self.spec, 0)

    def run(self, *, enable_pdl: bool = False, **changes: float | _core.DType) -> None:
        self.attention.run(self.run_args(**changes), 0, enable_pdl)

    def refuses(self, message: str, **changes: float | _core.DType) -> None:
        with pytest.raises(ValueError, match=message):
            self.run(**changes)

    def run_args(self, **changes: float | _core.DType) -> _core.RunArgs:
        row = NUM_KV_HEADS * HEAD_DIM
        cache_strides = {"page_stride": 2 * PAGE_SIZE * row, "token_stride": row, "head_stride": HEAD_DIM}
        args: dict[str, int | float | _core.DType] = {
            "dtype": _core.DType.BFLOAT16,
            "num_pages": NUM_PAGES,
            "num_rows": 64,
            "lse": 0x5000,
            "sm_scale": 0.0,
            "k_scale": 2.0,
            "v_scale": 3.0,
            "sm_scale_ptr": 0,
            "k_scale_ptr": 0,
            "v_scale_ptr": 0x6000,
        }
        for address, name in enumerate(("q", "k", "v", "out"), start=1):
            args[name] = address * 0x1000
        for name in ("q", "out"):
            args |= {f"{name}_token_stride": NUM_QO_HEADS * HEAD_DIM, f"{name}_head_stride": HEAD_DIM}
        for name in ("k", "v"):
            args |= {f"{name}_{stride}": value for stride, value in cache_strides.items()}
        return _core.RunArgs(**(args | changes))  # type: ignore[arg-type]
