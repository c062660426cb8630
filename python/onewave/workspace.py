"""The limits of an object and the workspace that they fix."""

from collections.abc import Collection

import torch

from onewave import _core
from onewave._validate import check_int

# The planner's bounds of PlanLimits: kMaxNumCtas of plan_format.h, and kMaxKvLen.
MAX_NUM_CTAS = 1024
MAX_KV_LEN = (1 << 30) - 256
# CTAs of a plan that is made without a GPU: the SMs of an H100 or H200.
DEFAULT_NUM_CTAS = 132
# What torch gives, and more than any part of the workspace asks for.
WORKSPACE_ALIGNMENT = 256

SPLIT_POLICIES = {"balanced": _core.SplitPolicy.BALANCED, "fixed": _core.SplitPolicy.FIXED}

CORE_DTYPES = {
    torch.float32: _core.DType.FLOAT32,
    torch.float16: _core.DType.FLOAT16,
    torch.bfloat16: _core.DType.BFLOAT16,
    torch.float8_e4m3fn: _core.DType.FLOAT8_E4M3,
}
FP8 = torch.float8_e4m3fn
# Of out, and of q where it is not FP8; a cache has q's, or FP8.
WIDE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
QUERY_DTYPES = (*WIDE_DTYPES, FP8)


def resolve_device(device: torch.device | str) -> torch.device:
    """The device with its index. DeviceError where it cannot run the kernel, ValueError for other kinds."""
    wanted = f"device is {str(device)!r}; it must be 'cuda', 'cuda:<index>' or 'cpu'"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(wanted) from error
    if resolved.type == "cpu":
        return torch.device("cpu")
    if resolved.type != "cuda":
        raise ValueError(wanted)
    if resolved.index is None:
        resolved = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    _core.device_info(resolved.index)
    if not torch.cuda.is_available():
        raise _core.DeviceError(
            f"device is {str(device)!r}, and torch {torch.__version__} cannot use it: "
            f"built for CUDA {torch.version.cuda}; install a torch built for CUDA 13"
        )
    return resolved


def check_dtype(name: str, dtype: torch.dtype, dtypes: Collection[torch.dtype] = QUERY_DTYPES) -> None:
    if not isinstance(dtype, torch.dtype) or dtype not in dtypes:
        raise ValueError(f"{name} is {dtype!r}; it must be one of {', '.join(map(str, dtypes))}")


def check_kv_dtype(name: str, kv_dtype: torch.dtype, q_name: str, q_dtype: torch.dtype) -> None:
    """Of a cache beside queries of `q_dtype`."""
    if q_dtype == FP8 and kv_dtype != FP8:
        raise ValueError(f"{name} is {kv_dtype!r}; it must be {FP8} where {q_name} is")
    if kv_dtype not in (q_dtype, FP8):
        raise ValueError(f"{name} is {kv_dtype!r}; it must equal {q_name}, {q_dtype}, or be {FP8}")


def make_limits(
    device: torch.device,
    max_batch_size: int,
    max_total_qo_len: int,
    max_kv_len: int,
    num_ctas: int | None,
    split_policy: str = "balanced",
    num_windows: int = 1,
    max_mask_bytes: int = 0,
    max_shared_qo_len: int = 0,
) -> _core.PlanLimits:
    """`num_ctas` None: one for each SM of the device, 132 for a CPU."""
    if split_policy not in SPLIT_POLICIES:
        raise ValueError(f"split_policy is {split_policy!r}; it must be 'balanced' or 'fixed'")
    available = MAX_NUM_CTAS
    wanted = DEFAULT_NUM_CTAS
    if device.type == "cuda":
        available = wanted = _core.device_info(device.index).num_sms
    return _core.PlanLimits(
        check_int("max_batch_size", max_batch_size, 1),
        check_int("max_total_qo_len", max_total_qo_len, 1),
        check_int("max_kv_len", max_kv_len, 1, MAX_KV_LEN),
        wanted if num_ctas is None else check_int("num_ctas", num_ctas, 1, available),
        SPLIT_POLICIES[split_policy],
        check_int("num_windows", num_windows, 1),
        check_int("max_mask_bytes", max_mask_bytes, 0),
        check_int("max_shared_qo_len", max_shared_qo_len, 0),
    )


def workspace_size(
    *,
    max_batch_size: int = 2048,
    max_total_qo_len: int = 65536,
    max_kv_len: int = 1 << 20,
    num_ctas: int | None = None,
    split_policy: str = "balanced",
    num_windows: int = 1,
    max_mask_bytes: int = 1 << 20,
    max_shared_qo_len: int = 512,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    head_dim_vo: int | None = None,
    page_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    device: torch.device | str = "cuda",
) -> int:
    """Bytes of the workspace that a BatchAttention of these limits needs for these heads; exact. Host only.

    head_dim: columns of a row of q and k, and of v and out where `head_dim_vo` is None.
    dtype: of q. kv_dtype: of k and v, where it is another: torch.float8_e4m3fn.
    `device` is looked at only where `num_ctas` is None. Raises ValueError for limits or heads that cannot be, and
    DeviceError where the SMs of a device that cannot be used are asked for.
    """
    where = resolve_device(device) if num_ctas is None else torch.device("cpu")
    limits = make_limits(
        where,
        max_batch_size,
        max_total_qo_len,
        max_kv_len,
        num_ctas,
        split_policy,
        num_windows,
        max_mask_bytes,
        max_shared_qo_len,
    )
    check_dtype("dtype", dtype)
    kv_dtype = dtype if kv_dtype is None else kv_dtype
    check_kv_dtype("kv_dtype", kv_dtype, "dtype", dtype)
    shape = _core.AttentionShape(
        check_int("num_qo_heads", num_qo_heads, 1),
        check_int("num_kv_heads", num_kv_heads, 1),
        check_int("head_dim", head_dim, 1),
        check_int("head_dim_vo", head_dim if head_dim_vo is None else head_dim_vo, 1),
        check_int("page_size", page_size, 1),
        CORE_DTYPES[dtype],
        CORE_DTYPES[kv_dtype],
    )
    return _core.workspace_layout(limits, shape).total_bytes


def check_workspace(workspace: torch.Tensor, device: torch.device) -> None:
    """All but its size, which depends on the heads of a plan."""
    if not isinstance(workspace, torch.Tensor):
        raise TypeError(f"workspace is a {type(workspace).__name__}; it must be a torch.Tensor")
    if workspace.dtype != torch.uint8:
        raise ValueError(f"workspace has dtype {workspace.dtype}; it must be torch.uint8")
    if workspace.device != device:
        raise ValueError(f"workspace is on device {workspace.device}; it must be on {device}")
    if workspace.dim() != 1 or not workspace.is_contiguous():
        raise ValueError(
            f"workspace has shape {tuple(workspace.shape)} and strides {workspace.stride()}; "
            "it must be one-dimensional and contiguous"
        )
    if workspace.data_ptr() % WORKSPACE_ALIGNMENT != 0:
        raise ValueError(
            f"workspace starts at {workspace.data_ptr():#x}; it must start at a multiple of 256 bytes"
        )


def check_workspace_size(workspace: torch.Tensor, num_bytes: int) -> None:
    if workspace.numel() < num_bytes:
        raise ValueError(
            f"workspace has {workspace.numel()} bytes; it must have {num_bytes} for these limits and heads, "
            "which onewave.workspace_size() tells"
        )
