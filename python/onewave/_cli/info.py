"""Versions, driver, device, and the kernels inside the library."""

import platform

import torch
from rich.console import Console
from rich.table import Table

import onewave
from onewave import _core
from onewave._cli.records import header_of


def show_info() -> int:
    """Prints all there is to know; a machine with no GPU or driver is no failure."""
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


def _kernel_table() -> Table:
    table = Table("dtype", "head_dim", "loader", "KiB", title="kernels inside")
    for kernel in _core.list_kernels():
        table.add_row(
            kernel.dtype.name.lower(),
            str(kernel.head_dim_qk)
            if kernel.head_dim_vo == kernel.head_dim_qk
            else f"{kernel.head_dim_qk}, {kernel.head_dim_vo}",
            kernel.loader.name.lower(),
            f"{kernel.num_bytes / 1024:.0f}",
        )
    return table
