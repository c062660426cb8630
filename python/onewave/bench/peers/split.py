"""A mixed batch as several launches: its decodes by one system, the rest by another."""

from collections.abc import Callable

import torch

from onewave.bench.system import Prepare, System, Unsupported
from onewave.bench.tensors import BatchTensors


class Split:
    """The parts one after the other, on the current stream."""

    def __init__(self, tensors: BatchTensors, parts: list[tuple[list[int], Prepare]]) -> None:
        """`parts`: indices of requests, and the system for them; parts without requests are left out."""
        self._out = torch.empty_like(tensors.q, dtype=tensors.workload.out_dtype)
        self._rows = [tensors.query_rows(indices) for indices, _ in parts if indices]
        self._parts: list[System] = [
            prepare(tensors.subset(indices)) for indices, prepare in parts if indices
        ]

    def plan(self) -> None:
        for part in self._parts:
            part.plan()

    def run(self) -> None:
        for part in self._parts:
            part.run()

    def output(self) -> torch.Tensor:
        for rows, part in zip(self._rows, self._parts, strict=True):
            self._out[rows] = part.output()
        return self._out


class TwoStreams(Split):
    """The last part on the current stream, the first beside it on a stream of its own."""

    def __init__(self, tensors: BatchTensors, parts: list[tuple[list[int], Prepare]]) -> None:
        super().__init__(tensors, parts)
        self._side = torch.cuda.Stream(tensors.device)  # type: ignore[no-untyped-call]

    def run(self) -> None:
        beside, last = self._parts
        main = torch.cuda.current_stream()
        self._side.wait_stream(main)
        # First the part that is asked to leave SMs free: the other fills what is left.
        last.run()
        with torch.cuda.stream(self._side):
            beside.run()
        main.wait_stream(self._side)


def by_kind(
    decode: Prepare, rest: Prepare, arrange: Callable[..., System] = Split, needs_both: bool = False
) -> Prepare:
    """Decodes by `decode`, all other requests by `rest`."""

    def prepare(tensors: BatchTensors) -> System:
        decodes, others = tensors.workload.decodes, tensors.workload.others
        if needs_both and not (decodes and others):
            raise Unsupported("needs decodes and other requests in one batch")
        return arrange(tensors, [(decodes, decode), (others, rest)])

    return prepare
