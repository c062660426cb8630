"""Times of a run on the GPU and of a plan on the host."""

import time
from collections.abc import Callable
from typing import Protocol

import torch

# Larger than any L2: writing it evicts what the last run left there.
FLUSH_BYTES = 256 << 20
# Times it is written: some 300 us of GPU time, in which the host issues the run, so that a system of several launches is
# not charged for the host's time between them.
NUM_FLUSHES = 4

Run = Callable[[], object]


class Stopwatch(Protocol):
    def issue(self, run: Run) -> Callable[[], float]:
        """Runs once on a cold L2. What it returns gives the microseconds, after synchronize()."""

    def repeat(self, run: Run, count: int) -> Run:
        """`count` runs as one."""

    def synchronize(self) -> None:
        """Waits until all that was issued is done."""


class GpuStopwatch:
    """CUDA events around the run alone, on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def issue(self, run: Run) -> Callable[[], float]:
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for value in range(NUM_FLUSHES):
            self._flush.fill_(value)
        begin.record()
        run()
        end.record()
        return lambda: float(begin.elapsed_time(end)) * 1e3

    def repeat(self, run: Run, count: int) -> Run:
        """A CUDA graph of as many nodes, or more where a run is several launches."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                run()
        return lambda: graph.replay()

    def synchronize(self) -> None:
        torch.cuda.synchronize()


class HostStopwatch:
    """For runs that are done when they return; what they read may be in a cache."""

    def issue(self, run: Run) -> Callable[[], float]:
        begin = time.perf_counter()
        run()
        duration_us = (time.perf_counter() - begin) * 1e6
        return lambda: duration_us

    def repeat(self, run: Run, count: int) -> Run:
        def run_all() -> None:
            for _ in range(count):
                run()

        return run_all

    def synchronize(self) -> None:
        pass


def time_plan(plan: Run, stopwatch: Stopwatch) -> tuple[float, float]:
    """Microseconds of the host until plan() returns, and until the device is done too. It starts idle."""
    stopwatch.synchronize()
    begin = time.perf_counter()
    plan()
    returned = time.perf_counter()
    stopwatch.synchronize()
    return (returned - begin) * 1e6, (time.perf_counter() - begin) * 1e6
