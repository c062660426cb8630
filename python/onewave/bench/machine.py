"""What a measurement was taken on: GPU, driver, versions, commit, and the clock while it was taken."""

import hashlib
import importlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import onewave

PACKAGES = ("flashinfer-python", "torch", "triton")


class ClockLog:
    """The SM clock in MHz: by NVML where its Python module is there, else by nvidia-smi, else not at all."""

    def __init__(self, device: torch.device) -> None:
        self.samples_mhz: list[int] = []
        self._nvml: Any = None
        self._handle: Any = None
        self._name = _smi_name(device) if device.type == "cuda" else None
        if self._name is not None:
            self._open_nvml(self._name)

    @property
    def is_cheap(self) -> bool:
        """A sample takes microseconds, not the tenth of a second that a process takes."""
        return self._nvml is not None

    def sample(self) -> None:
        if self._nvml is not None:
            self.samples_mhz.append(
                int(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
            )
        elif self._name is not None:
            answer = _ask_smi(self._name, "clocks.sm")
            if answer is not None and answer.isdigit():
                self.samples_mhz.append(int(answer))

    def take(self) -> list[int]:
        """The samples since the last take."""
        samples, self.samples_mhz = self.samples_mhz, []
        return samples

    def _open_nvml(self, name: str) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            by_uuid = name.startswith("GPU-")
            find = nvml.nvmlDeviceGetHandleByUUID if by_uuid else nvml.nvmlDeviceGetHandleByIndex
            self._handle = find(name if by_uuid else int(name))
            nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
        except Exception:  # noqa: BLE001 -- its own classes of error, and nvidia-smi remains
            return
        self._nvml = nvml


def describe_machine(device: torch.device) -> dict[str, Any]:
    """For the record; None for what cannot be known."""
    record: dict[str, Any] = {"python": platform.python_version(), "onewave": onewave.__version__}
    record |= {package: _version(package) for package in PACKAGES}
    if device.type != "cuda":
        return record | {"device": "cpu", "cpu": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(device)
    name = _smi_name(device)
    return record | {
        "device": properties.name,
        "num_sms": properties.multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "driver": _ask_smi(name, "driver_version"),
        "power_limit": _ask_smi(name, "power.limit"),
        "max_sm_clock": _ask_smi(name, "clocks.max.sm"),
    }


def commit_of_checkout(folder: Path) -> str | None:
    """The commit, with "-dirty" where files differ from it; None where `folder` is no checkout of this project."""
    root = _output_of("git", "-C", str(folder), "rev-parse", "--show-toplevel")
    if root is None or not (Path(root) / "python/onewave/bench").is_dir():
        return None
    return _output_of("git", "-C", root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def digest(path: Path | None) -> str | None:
    """SHA-256 of a file."""
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        blocks = hashlib.sha256()
        while block := file.read(1 << 20):
            blocks.update(block)
    return blocks.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _smi_name(device: torch.device) -> str:
    """As nvidia-smi and NVML know the device: by UUID, since CUDA_VISIBLE_DEVICES renumbers the others."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return str(device.index or 0) if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"


def _ask_smi(name: str, field: str) -> str | None:
    options = ("--format=csv,noheader,nounits", f"--id={name}", f"--query-gpu={field}")
    return _output_of("nvidia-smi", *options)


def _output_of(*command: str) -> str | None:
    """One line; None where the command fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
