"""How long the attention of a model takes, in parts."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Sums the times of named spans of a generation, which is one thread: "plan", "append" and "run".

    On a GPU two CUDA events on the current stream are a span, and nothing waits for them until the end, so that the host
    goes on as it would without; where it is slower than the GPU, a span has the time in which the GPU waited for the span's
    launches. On a CPU, and in host_span(), it is the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []
        self._is_inside = False
        self._begin = self._end = 0.0
        self.num_steps = 0

    def begin_step(self) -> None:
        """A forward pass begins."""
        self.num_steps += 1
        if self.num_steps == 1:
            self._begin = time.perf_counter()

    def end(self) -> None:
        """The last token is there."""
        self._end = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """From the first step to the last token."""
        return self._end - self._begin

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span inside another one is a part of that, and not counted twice."""
        if self._is_inside:
            yield
            return
        self._is_inside = True
        try:
            if not self._is_gpu:
                with self.host_span(name):
                    yield
                return
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        finally:
            self._is_inside = False

    @contextmanager
    def host_span(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begin

    def seconds(self) -> dict[str, float]:
        """Of each name so far; on a GPU it waits for what is on the device."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) * 1e-3
        self._events.clear()
        return dict(self._seconds)
