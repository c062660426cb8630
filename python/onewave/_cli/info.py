"""Versions, driver, device, and the kernels inside the library."""

import platform
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table

import onewave
from onewave import _core
from onewave._plan_records import header_of


def show_info(as_markdown: bool) -> int:
    """Prints all there is to know; a machine with no GPU or driver is no failure. `as_markdown`: the kernels alone."""
    if as_markdown:
        print(kernel_markdown(), end="")
        return 0
    console = Console()
    console.print(_machine_table())
    console.print(_kernel_table())
    return 0


def _machine_table() -> Table:
    table = Table("", "", title="onewave", show_header=False)
    table.add_row("onewave", onewave.__version__)
    table.add_row("plan format", str(_plan_version()))
    table.add_row("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})")
    table.add_row("python", platform.python_version())
    try:
        device = _core.device_info(torch.cuda.current_device() if torch.cuda.is_available() else 0)
    except onewave.DeviceError as error:
        table.add_row("device", f"not usable: {error}")
        return table
    # 13000 is CUDA 13.0.
    table.add_row("driver", f"CUDA {device.driver_version // 1000}.{device.driver_version % 1000 // 10}")
    capability = f"{device.capability_major}.{device.capability_minor}"
    table.add_row("device", f"{device.name}, {device.num_sms} SMs, compute capability {capability}")
    table.add_row("planned with the calibration of", _core.calibration_of(device.name).gpu)
    return table


def _plan_version() -> int:
    """As an empty plan says it."""
    attention = onewave.BatchAttention(device="cpu")
    indptr = torch.zeros(1, dtype=torch.int32)
    attention.plan(indptr, indptr, indptr[:0], indptr[:0], 1, 1, 64, 64, 1)
    return int(header_of(attention.plan_bytes())["version"])


# A cubin for each dtype of q, dtype of a cache (the same or fp8), loader and kind of masks; "masked" also has windows, soft
# caps, sinks, custom masks and scales of groups of tokens.
KERNEL_COLUMNS = (
    "head_dim of q and k",
    "of v and out",
    "dtypes of q",
    "of k and v, if another",
    "loaders",
    "kernels",
    "KiB",
)
KERNEL_CAPTION = (
    "tma: of page sizes that are a power of two from 8 on; gather: of the others. plain: causal or all keys; masked: windows, "
    "soft caps, sinks, custom masks and scales of groups of tokens too; profiled: of trace(), bfloat16 and some of fp8 alone"
)


def kernel_rows() -> list[tuple[str, ...]]:
    """What the kernels inside support, a row for each pair of head_dims."""
    by_head_dims: dict[tuple[int, int], list[_core.KernelInfo]] = {}
    for kernel in _core.list_kernels():
        by_head_dims.setdefault((kernel.head_dim_qk, kernel.head_dim_vo), []).append(kernel)
    return [
        (
            str(head_dim_qk),
            str(head_dim_vo),
            _names(kernel.dtype.name.lower() for kernel in kernels),
            _names(k.kv_dtype.name.lower() for k in kernels if k.kv_dtype != k.dtype) or "-",
            _names(kernel.loader.name.lower() for kernel in kernels),
            _names(_variant(kernel) for kernel in kernels),
            f"{sum(kernel.num_bytes for kernel in kernels) / 1024:.0f}",
        )
        for (head_dim_qk, head_dim_vo), kernels in by_head_dims.items()
    ]


def _variant(kernel: _core.KernelInfo) -> str:
    if kernel.is_profiled:
        return "profiled"
    return "masked" if kernel.is_masked else "plain"


def kernel_markdown() -> str:
    """The table of the README."""
    rows = (KERNEL_COLUMNS[:-1], ("---",) * (len(KERNEL_COLUMNS) - 1), *(row[:-1] for row in kernel_rows()))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _kernel_table() -> Table:
    table = Table(*KERNEL_COLUMNS, title="kernels inside", caption=KERNEL_CAPTION)
    for row in kernel_rows():
        table.add_row(*row)
    return table
