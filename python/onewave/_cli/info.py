"""Versions, driver, device, and the kernels inside the library."""

import platform

import torch
from rich.console import Console
from rich.table import Table

import onewave
from onewave import _core


def show_info() -> int:
    console = Console()
    console.print(_machine_table())
    console.print(_kernel_table())
    return 0


def _machine_table() -> Table:
    table = Table("", "", title="onewave", show_header=False)
    table.add_row("onewave", onewave.__version__)
    table.add_row("plan format", str(_core.plan_version()))
    table.add_row("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})")
    table.add_row("python", platform.python_version())
    try:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        device = _core.device_info(index)
    except onewave.DeviceError as error:
        table.add_row("device", f"none: {error}")
        return table
    major, minor = divmod(device.driver_version // 10, 100)
    table.add_row("driver", f"CUDA {major}.{minor}")
    table.add_row(
        "device",
        f"{device.name}, {device.num_sms} SMs, capability {device.capability_major}.{device.capability_minor}",
    )
    return table


def _kernel_table() -> Table:
    table = Table("dtype", "head_dim", "loader", "KiB", title="kernels inside")
    for kernel in _core.list_kernels():
        table.add_row(
            kernel.dtype.name.lower(),
            str(kernel.head_dim),
            kernel.loader.name.lower(),
            f"{kernel.num_bytes / 1024:.0f}",
        )
    return table
