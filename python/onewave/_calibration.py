"""Files of what work costs on a GPU, as `python -m onewave calibrate` writes them."""

import json
import os
from pathlib import Path
from typing import Any

from onewave import _core

LOADERS = {"tma": _core.Loader.TMA, "gather": _core.Loader.GATHER}


def read_calibration(file: str | os.PathLike[str]) -> _core.Calibration:
    """ValueError for a file that is no calibration; what it says beside the rates is ignored."""
    path = Path(file)
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"calibration {path}: not JSON: {error}") from error
    try:
        return to_core(record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"calibration {path}: {error!r}; see cpp/calibrations for what one holds") from error


def to_core(record: dict[str, Any]) -> _core.Calibration:
    return _core.Calibration(
        record["gpu"],
        record["launch_us"],
        record["split_us"],
        record["partial_gb_per_s"],
        [_core.MemoryRate(point["num_ctas"], point["gb_per_s"]) for point in record["memory"]],
        [_kernel(kernel) for kernel in record["kernels"]],
    )


def _kernel(kernel: dict[str, Any]) -> _core.KernelRates:
    return _core.KernelRates(
        kernel["head_dim"],
        LOADERS[kernel["loader"]],
        kernel["q_bytes"],
        kernel["kv_bytes"],
        kernel["wide_step_us"],
        kernel["wide_unit_us"],
        kernel["wide_slowdown"],
        kernel["wide_unit_slowdown"],
        kernel["narrow_unit_us"],
        kernel["narrow_gb_per_s"],
    )
