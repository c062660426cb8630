"""The memory of profiled runs: a slot for each run() of a step, and for each of its nodes in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from onewave import _core
from onewave._batch import Batch
from onewave._prediction import predict_bars

if TYPE_CHECKING:
    from onewave.trace import Run, Trace

# Of memory that the kernel's records are written to.
ALIGNMENT = 16


class Profiler:
    """Of one BatchAttention: `num_runs` slots with room for `max_items` items of each CTA, allocated here.

    A run that a CUDA graph captures keeps its slot, and each replay writes to it anew; others take the slots that are
    left, from the first on after each plan(). A run for which none is left is not recorded.
    """

    def __init__(
        self,
        device: torch.device,
        num_ctas: int,
        num_runs: int,
        max_items: int,
        calibration: _core.Calibration | None,
    ) -> None:
        """`calibration`: that of the plans; None: no run is compared with its plan."""
        num_bytes = _core.profile_bytes(num_ctas, max_items)
        self._buffer = torch.zeros((num_runs, num_bytes), dtype=torch.uint8, device=device)
        # Up to here a slot says whether there was a run.
        self._head_bytes = _core.profile_bytes(num_ctas, 0)
        self._num_ctas = num_ctas
        self._calibration = calibration
        self._is_captured: dict[int, bool] = {}  # by the number of a slot that is taken
        self._num_unrecorded = {False: 0, True: 0}  # captured or not
        self._shape: _core.AttentionShape | None = None
        self._qo_indptr = torch.zeros(1, dtype=torch.int32)
        self._prefix_groups: torch.Tensor | None = None

    def begin_plan(self, shape: _core.AttentionShape, batch: Batch) -> None:
        """Forgets the runs before, on the current stream."""
        self._buffer[:, : self._head_bytes].zero_()
        self._is_captured = {slot: True for slot, is_captured in self._is_captured.items() if is_captured}
        self._num_unrecorded[False] = 0
        self._shape = shape
        # The caller may change them.
        self._qo_indptr = batch.qo_indptr.clone()
        self._prefix_groups = None if batch.prefix_groups is None else batch.prefix_groups.clone()

    def check(self, buffer: torch.Tensor) -> None:
        """Of the caller."""
        if not isinstance(buffer, torch.Tensor):
            raise TypeError(f"profiler_buffer is a {type(buffer).__name__}; it must be a torch.Tensor")
        if buffer.device != self._buffer.device:
            raise ValueError(
                f"profiler_buffer is on device {buffer.device}; it must be on {self._buffer.device}"
            )
        if not buffer.is_contiguous() or buffer.data_ptr() % ALIGNMENT != 0:
            raise ValueError(
                f"profiler_buffer starts at {buffer.data_ptr():#x} with strides {buffer.stride()}; it must be contiguous "
                f"and start at a multiple of {ALIGNMENT}"
            )
        needed = _core.profile_bytes(self._num_ctas, 1)
        if buffer.nbytes < needed:
            raise ValueError(
                f"profiler_buffer has {buffer.nbytes} bytes; it must have {needed} or more for {self._num_ctas} CTAs, "
                "which profiler_buffer_size() tells"
            )

    def record(
        self,
        args: _core.RunArgs,
        launch: Callable[[], None],
        is_captured: bool,
        buffer: torch.Tensor | None,
    ) -> None:
        """Launches a run that is recorded in the caller's buffer, which is checked, or in a slot; where none is left, one
        that is not recorded. A run that fails keeps no slot."""
        if buffer is not None:
            args.set_profile(buffer.data_ptr(), buffer.nbytes)
            return launch()
        slot = self._free_slot(is_captured)
        if slot is not None:
            args.set_profile(self._buffer[slot].data_ptr(), self._buffer.shape[1])
        launch()
        if slot is None:
            self._num_unrecorded[is_captured] += 1
        else:
            self._is_captured[slot] = is_captured

    def _free_slot(self, is_captured: bool) -> int | None:
        """A capture may take one of a run that was not captured."""
        free = (slot for slot in range(len(self._buffer)) if slot not in self._is_captured)
        slot = next(free, None)
        if slot is None and is_captured:
            slot = next((i for i, captured in self._is_captured.items() if not captured), None)
        return slot

    def trace(self, plan_bytes: Callable[[int], bytes], buffer: torch.Tensor | None) -> Trace:
        """Of the caller's buffer, or of all slots. `plan_bytes`: of a window's last plan."""
        # Tables and all: not what `import onewave` is for.
        from onewave.trace import Trace
        from onewave.trace.records import read_run

        if buffer is not None:
            self.check(buffer)
            run = read_run(buffer.flatten().view(torch.uint8).cpu(), "run")
            return Trace(self._predicted([] if run is None else [run], plan_bytes))
        slots = sorted(self._is_captured)
        host = self._buffer[: max(slots, default=-1) + 1].cpu()
        found = (
            read_run(host[slot], f"run {slot}" + (", replayed" if self._is_captured[slot] else ""))
            for slot in slots
        )
        runs = [run for run in found if run is not None]
        return Trace(self._predicted(runs, plan_bytes), sum(self._num_unrecorded.values()))

    def _predicted(self, runs: list[Run], plan_bytes: Callable[[int], bytes]) -> list[Run]:
        if self._calibration is None or self._shape is None:
            return runs
        costs = _core.CostModel(self._shape, self._calibration)
        predictions = {}
        for window in {run.window for run in runs}:
            bars = predict_bars(plan_bytes(window), self._shape, costs, self._qo_indptr, self._prefix_groups)
            predictions[window] = tuple(bar._replace(begin_us=bar.begin_us - costs.launch_us) for bar in bars)
        return [replace(run, prediction=predictions[run.window]) for run in runs]
