"""Where a plan is made and run: on the host alone, or on a GPU. Both take the same records."""

from typing import Protocol

import torch

from onewave import _core
from onewave._batch import Batch
from onewave._masks import Masks


def current_stream(device: torch.device) -> int:
    """torch's. What Triton and Inductor call too: torch.cuda.current_stream() makes an object, 3 us of a plan."""
    return int(torch._C._cuda_getCurrentRawStream(device.index))


class Engine(Protocol):
    """Plans and runs for one shape."""

    def plan(self, batch: Batch, masks: Masks, sm_scale: float) -> None:
        """Replaces the plans, one for each window; leaves the last ones where it raises."""

    def load_profiler(self) -> None:
        """For runs whose arguments have a profile."""

    def update_kv_lens(self) -> None:
        """For the runs from now on; plan() does so too."""

    def run(self, args: _core.RunArgs, window: int, enable_pdl: bool) -> None: ...

    def plan_bytes(self, window: int) -> bytes:
        """A copy of the last plan."""


class CpuEngine:
    """The CPU executor: one thread per core."""

    def __init__(
        self,
        limits: _core.PlanLimits,
        shape: _core.AttentionShape,
        calibration: _core.Calibration | None,
    ) -> None:
        self._limits = limits
        self._shape = shape
        self._costs = _core.CostModel(shape, calibration or _core.calibration_of(""))
        self._plans: list[bytes] = []
        self._updated_plans: list[bytes] = []  # with the lengths of now
        self._held: tuple[torch.Tensor | None, ...] = ()  # the plan holds their addresses

    def plan(self, batch: Batch, masks: Masks, sm_scale: float) -> None:
        # A copy: the caller's page ids are checked now, and may be overwritten before the last run.
        kv_indices = batch.kv_indices.clone()
        self._plans = [
            _core.plan_batch(
                self._limits,
                self._shape,
                sm_scale=sm_scale,
                costs=self._costs,
                window_left=window_left,
                **batch.arguments(kv_indices),
                **masks.arguments(),
            )
            for window_left in masks.window_lefts
        ]
        self._held = (kv_indices, batch.actual_kv_len_arr)
        self.update_kv_lens()

    def load_profiler(self) -> None:
        pass

    def update_kv_lens(self) -> None:
        self._updated_plans = [_core.update_kv_lens(plan) for plan in self._plans]

    def run(self, args: _core.RunArgs, window: int, enable_pdl: bool) -> None:
        _core.execute_plan(self._updated_plans[window], args, 0)

    def plan_bytes(self, window: int) -> bytes:
        return self._plans[window]


class DeviceEngine:
    """A GPU: the plan is uploaded to the workspace, and a run is one launch, both on torch's current stream."""

    def __init__(
        self,
        device: torch.device,
        limits: _core.PlanLimits,
        shape: _core.AttentionShape,
        workspace: torch.Tensor,
        calibration: _core.Calibration | None,
    ) -> None:
        self._device = device
        self._workspace = workspace
        self._attention = _core.DeviceAttention(
            device.index, limits, shape, workspace.data_ptr(), calibration
        )
        self._held: tuple[torch.Tensor | None, ...] = ()  # in use by the device until the next plan

    def plan(self, batch: Batch, masks: Masks, sm_scale: float) -> None:
        kv_indices = batch.kv_indices
        if kv_indices.device != self._device:
            # Memory of its own for each plan, so that one that fails leaves the last one's page ids, and on the host
            # too, where a caller's pinned memory could change before the copy is done. torch gives neither part out
            # again before the stream is done with it.
            staged = torch.empty_like(kv_indices, pin_memory=True).copy_(kv_indices)
            kv_indices = staged.to(self._device, non_blocking=True)
        self._attention.plan(
            sm_scale=sm_scale,
            stream=current_stream(self._device),
            window_lefts=masks.window_lefts,
            **batch.arguments(kv_indices),
            **masks.arguments(),
        )
        self._held = (kv_indices, batch.actual_kv_len_arr)

    def load_profiler(self) -> None:
        self._attention.load_profiler()

    def update_kv_lens(self) -> None:
        self._attention.update_kv_lens(current_stream(self._device))

    def run(self, args: _core.RunArgs, window: int, enable_pdl: bool) -> None:
        self._attention.run(args, current_stream(self._device), enable_pdl)

    def plan_bytes(self, window: int) -> bytes:
        return self._attention.plan_bytes(window)
