"""The memory of profiled runs: a slot for each run() of a step, and for each of its nodes in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from onewave import _core
from onewave._batch import Batch
from onewave._prediction import predict_bars
from onewave._validate import check_int, check_tensor
from onewave.trace import Trace
from onewave.trace.records import Run, read_run

# Of memory that the kernel's records are written to.
ALIGNMENT = 16


class Slot(NamedTuple):
    """Where one run's profile lies."""

    number: int
    window: int
    is_captured: bool


class Profiler:
    """Of one BatchAttention: `num_runs` slots with room for `max_items` items of each CTA, allocated here.

    A run that a CUDA graph captures keeps its slot, and each replay writes to it anew; others take the slots that are
    left, from the first on after each plan().
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
        num_bytes = -(-_core.profile_bytes(num_ctas, max_items) // ALIGNMENT) * ALIGNMENT
        self._buffer = torch.zeros((num_runs, num_bytes), dtype=torch.uint8, device=device)
        # Up to here a slot says whether there was a run.
        self._head_bytes = _core.profile_bytes(num_ctas, 0)
        self._num_ctas = num_ctas
        self._calibration = calibration
        self._slots: dict[int, Slot] = {}
        self._shape: _core.AttentionShape | None = None
        self._qo_indptr = torch.zeros(1, dtype=torch.int32)
        self._prefix_groups: torch.Tensor | None = None

    def begin_plan(self, shape: _core.AttentionShape, batch: Batch) -> None:
        """Forgets the runs before, on the current stream."""
        self._buffer[:, : self._head_bytes].zero_()
        self._slots = {index: slot for index, slot in self._slots.items() if slot.is_captured}
        self._shape = shape
        # The caller may change them.
        self._qo_indptr = batch.qo_indptr.clone()
        self._prefix_groups = None if batch.prefix_groups is None else batch.prefix_groups.clone()

    def set_profile(
        self, args: _core.RunArgs, window: int, is_captured: bool, buffer: torch.Tensor | None
    ) -> None:
        """Gives a run the caller's buffer, or a slot. Raises RuntimeError where none is left."""
        if buffer is not None:
            check_profiler_buffer(buffer, self._buffer.device, self._num_ctas)
            args.set_profile(buffer.data_ptr(), buffer.numel())
            return
        index = next((i for i in range(len(self._buffer)) if i not in self._slots), None)
        if index is None:
            raise RuntimeError(
                f"all {len(self._buffer)} slots of the profiler are taken by runs since the last plan() and by CUDA graphs; "
                "max_profiled_runs must be larger"
            )
        self._slots[index] = Slot(index, window, is_captured)
        args.set_profile(self._buffer[index].data_ptr(), self._buffer.shape[1])

    def trace(self, plan_bytes: Callable[[int], bytes], buffer: torch.Tensor | None) -> Trace:
        """Of the caller's buffer, or of all slots. `plan_bytes`: of a window's last plan."""
        if buffer is not None:
            run = read_run(buffer.cpu(), "run")
            return Trace([] if run is None else [self._predicted(run, plan_bytes(0))])
        slots = [self._slots[index] for index in sorted(self._slots)]
        host = self._buffer[: max((slot.number + 1 for slot in slots), default=0)].cpu()
        runs = []
        for slot in slots:
            name = f"run {slot.number}" + (f", window {slot.window}" if slot.window else "")
            run = read_run(host[slot.number], name + (", replayed" if slot.is_captured else ""))
            if run is not None:
                runs.append(self._predicted(run, plan_bytes(slot.window)))
        return Trace(runs)

    def _predicted(self, run: Run, plan: bytes) -> Run:
        if self._calibration is None or self._shape is None:
            return run
        costs = _core.CostModel(self._shape, self._calibration)
        bars = predict_bars(plan, self._shape, costs, self._qo_indptr, self._prefix_groups)
        shifted = tuple(bar._replace(begin_us=bar.begin_us - costs.launch_us) for bar in bars)
        return replace(run, prediction=shifted)


def profiler_buffer_size(num_ctas: int, max_items: int = 128) -> int:
    """Bytes of a `profiler_buffer` of run(): of one run of `num_ctas` CTAs, with room for `max_items` items of each (an
    item once for each step of its kv heads). Host only."""
    return _core.profile_bytes(check_int("num_ctas", num_ctas, 1), check_int("max_items", max_items, 1))


def check_profiler_buffer(buffer: torch.Tensor, device: torch.device, num_ctas: int) -> None:
    check_tensor("profiler_buffer", buffer, dtype=torch.uint8, devices=(device,), num_dims=1)
    if not buffer.is_contiguous() or buffer.data_ptr() % ALIGNMENT != 0:
        raise ValueError(
            f"profiler_buffer starts at {buffer.data_ptr():#x} with strides {buffer.stride()}; it must be contiguous and "
            f"start at a multiple of {ALIGNMENT}"
        )
    needed = _core.profile_bytes(num_ctas, 1)
    if buffer.numel() < needed:
        raise ValueError(
            f"profiler_buffer has {buffer.numel()} bytes; it must have {needed} or more for {num_ctas} CTAs, "
            "which onewave.profiler_buffer_size() tells"
        )
