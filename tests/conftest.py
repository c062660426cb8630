"""Tests marked `gpu` are skipped, with the reason, where onewave cannot use the machine's GPU."""

import functools

import onewave
import pytest
import torch


@functools.cache
def gpu_problem() -> str | None:
    """Why tests of the GPU cannot run here; None where they can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    try:
        onewave.BatchAttention(device="cuda")
    except onewave.DeviceError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is not None and gpu_problem() is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs a Hopper GPU: {gpu_problem()}"))
