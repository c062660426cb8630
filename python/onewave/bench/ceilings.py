"""What a GPU reads and multiplies at most, measured: the floor of a workload is how long that takes at least."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Rates that probes reached on one GPU of a kind."""

    gpu: str
    bytes_per_second: float  # read from memory, every SM, long runs
    flop_per_second: float  # a large dense bf16 matrix product of the framework's


H200 = Ceilings("H200", 4.70e12, 790e12)
# bench/results/ceilings_h100.json, by bench/probes/ceilings.py.
H100 = Ceilings("H100", 3.12e12, 780e12)


def ceilings_of(device_name: str) -> Ceilings:
    """By a device's name, as CUDA tells it; those of an H200 where the name is of another GPU."""
    return next((ceilings for ceilings in (H100, H200) if ceilings.gpu in device_name), H200)


def device_ceilings(device: torch.device) -> Ceilings:
    """Those of an H200 for a device that is no GPU."""
    return ceilings_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else H200
