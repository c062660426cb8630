"""Measures systems on a workload, by turns."""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from onewave.bench.ceilings import device_ceilings
from onewave.bench.machine import ClockLog
from onewave.bench.reference import max_relative_error, reference_attention, relative_error
from onewave.bench.result import Result, WorkloadResult, is_ours
from onewave.bench.system import Prepare, System, Unsupported
from onewave.bench.tensors import BatchTensors, make_tensors
from onewave.bench.timing import GpuStopwatch, HostStopwatch, Run, Stopwatch, time_plan
from onewave.bench.workload import Workload

NUM_WARMUPS = 3
# Of a failure's text.
MAX_LINE = 200

# Told what is done next.
Progress = Callable[[str], None]
T = TypeVar("T")


@dataclass
class _Entrant:
    """A system that planned and ran once."""

    result: Result
    system: System
    timed: Run  # a run, or a graph of several
    num_runs: int = 1  # in `timed`


class Harness:
    """One device, one buffer that evicts its L2, one log of its clock."""

    def __init__(self, device: torch.device, num_runs: int, seed: int, is_checked: bool = True) -> None:
        self._device = device
        self._num_runs = num_runs
        self._seed = seed
        self._is_checked = is_checked
        self._stopwatch: Stopwatch = GpuStopwatch(device) if device.type == "cuda" else HostStopwatch()
        self._clocks = ClockLog(device)
        self._ceilings = device_ceilings(device)

    def num_steps(self, num_systems: int) -> int:
        """Calls of `progress` for one workload, if every system takes part."""
        return 1 + 2 * num_systems + NUM_WARMUPS + self._num_runs

    def measure(
        self, workload: Workload, systems: Mapping[str, Prepare], progress: Progress
    ) -> WorkloadResult:
        """A system that fails has the reason in its result; the others go on. Raises RuntimeError where the device
        cannot even hold the tensors."""
        self._release()
        progress("float32" if self._is_checked else "tensors")
        tensors = make_tensors(workload, str(self._device), self._seed)
        expected = reference_attention(tensors, torch.float32)[0] if self._is_checked else None
        results = [Result(name, max_relative_error=max_relative_error(workload)) for name in systems]
        entrants = []
        for result, prepare in zip(results, systems.values(), strict=True):
            progress(f"{result.system}: first run")
            entrants.append(_guard(result, partial(self._admit, result, prepare, tensors, expected)))
        del expected
        clocks_mhz = self._time([entrant for entrant in entrants if entrant is not None], workload, progress)
        return WorkloadResult(workload, results, clocks_mhz, self._ceilings)

    def _release(self) -> None:
        """Gives back what the last workload took, some of which graphs and wrappers hold in cycles."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _admit(
        self, result: Result, prepare: Prepare, tensors: BatchTensors, expected: torch.Tensor | None
    ) -> _Entrant:
        """Compares the first run with `expected`."""
        if tensors.workload.num_ctas is not None and not is_ours(result.system):
            raise Unsupported("runs on all SMs")
        system = prepare(tensors)
        system.plan()
        system.run()
        self._stopwatch.synchronize()
        if expected is not None:
            result.relative_error = relative_error(system.output(), expected)
        return _Entrant(result, system, system.run)

    def _time(self, entrants: list[_Entrant], workload: Workload, progress: Progress) -> list[int]:
        """Plans, then runs. Returns the SM clocks in MHz."""
        for entrant in entrants:
            progress(f"{entrant.result.system}: plan")
            _guard(entrant.result, partial(self._time_plans, entrant))
            _guard(entrant.result, partial(self._make_graph, entrant, workload.num_graph_nodes))
        return self._time_runs(entrants, progress)

    def _time_plans(self, entrant: _Entrant) -> None:
        for i in range(NUM_WARMUPS + self._num_runs):
            returned_us, done_us = time_plan(entrant.system.plan, self._stopwatch)
            if i >= NUM_WARMUPS:
                entrant.result.plan_us.append(returned_us)
                entrant.result.plan_done_us.append(done_us)

    def _make_graph(self, entrant: _Entrant, num_nodes: int) -> None:
        """After the last plan(): a peer's plan may put its tensors elsewhere, and a graph has their addresses."""
        if num_nodes > 0 and entrant.result.failure is None:
            entrant.timed = self._stopwatch.repeat(entrant.system.run, num_nodes)
            entrant.num_runs = num_nodes

    def _time_runs(self, entrants: list[_Entrant], progress: Progress) -> list[int]:
        """Round-robin, since clocks drift; each round begins with another system."""
        if not self._clocks.is_cheap:
            self._clocks.sample()
        for i in range(NUM_WARMUPS + self._num_runs):
            is_warmup = i < NUM_WARMUPS
            progress("warm-up" if is_warmup else f"run {i - NUM_WARMUPS + 1} of {self._num_runs}")
            first = i % max(len(entrants), 1)
            issued: list[tuple[_Entrant, Callable[[], float]]] = []
            for entrant in entrants[first:] + entrants[:first]:
                if entrant.result.failure is not None:
                    continue
                elapsed_us = _guard(entrant.result, partial(self._stopwatch.issue, entrant.timed))
                if elapsed_us is not None:
                    issued.append((entrant, elapsed_us))
            if self._clocks.is_cheap:
                # While the GPU works on what was issued.
                self._clocks.sample()
            for entrant, elapsed_us in issued:
                us = _guard(entrant.result, partial(self._wait_for, elapsed_us))
                if us is not None and not is_warmup:
                    entrant.result.times_us.append(us / entrant.num_runs)
        if not self._clocks.is_cheap:
            self._clocks.sample()
        return self._clocks.take()

    def _wait_for(self, elapsed_us: Callable[[], float]) -> float:
        self._stopwatch.synchronize()
        return elapsed_us()


def _guard(result: Result, action: Callable[[], T]) -> T | None:
    """None where the action raised, and why in the result."""
    try:
        return action()
    except Unsupported as reason:
        result.failure, result.is_unsupported = str(reason), True
    except Exception as error:  # noqa: BLE001 -- another project's kernel may fail in any way
        result.failure = one_line(error)
    return None


def one_line(error: Exception) -> str:
    """For a record, which is to say nothing of where this machine keeps things."""
    text = " ".join(str(error).split())
    for path, name in ((sys.prefix, "<prefix>"), (str(Path.home()), "~")):
        text = text.replace(f"{path}/", f"{name}/") if path != "/" else text
    return f"{type(error).__name__}: {text}"[:MAX_LINE]
