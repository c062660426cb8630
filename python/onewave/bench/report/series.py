"""Curves in a record: workloads that are the same but for one number, whatever they are called."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from onewave.bench.result import WorkloadResult
from onewave.bench.workload import Request, Workload

# Fewer are no curve.
MIN_POINTS = 3


class Axis(NamedTuple):
    key: str
    title: str
    label: str  # of the x axis


BATCH_SIZE = Axis("batch-size", "Batch size", "requests")
SEQUENCE_LENGTH = Axis("sequence-length", "Sequence length", "tokens of each request")
PAGE_SIZE = Axis("page-size", "Page size", "tokens of a page")
CHUNK_SIZE = Axis("chunk-size", "Chunk size", "queries of the chunk")
AXES = (BATCH_SIZE, SEQUENCE_LENGTH, PAGE_SIZE, CHUNK_SIZE)


@dataclass
class Series:
    """Of one axis: results by the number that differs."""

    axis: Axis
    title: str  # what is the same for all
    results: dict[int, WorkloadResult] = field(default_factory=dict)

    def sorted(self) -> list[tuple[int, WorkloadResult]]:
        return sorted(self.results.items(), key=lambda item: item[0])


class _Place(NamedTuple):
    """Of a workload on a curve."""

    axis: Axis
    common: Hashable  # equal for the workloads of a curve
    x: int
    title: str


def find_series(results: Iterable[WorkloadResult]) -> list[Series]:
    """In the order of AXES. Of two workloads at one place, the later one of the record."""
    found: dict[tuple[Axis, Hashable], Series] = {}
    for result in results:
        for place in _places(result.workload):
            series = found.setdefault((place.axis, place.common), Series(place.axis, place.title))
            series.results[place.x] = result
    curves = [series for series in found.values() if len(series.results) >= MIN_POINTS]
    return sorted(curves, key=lambda series: AXES.index(series.axis))


def _places(workload: Workload) -> Iterator[_Place]:
    requests = workload.requests
    if not requests:
        return
    shape = replace(workload, name="", requests=(), lens_seed=None)
    described = workload.describe_shape()
    yield _Place(
        PAGE_SIZE,
        (replace(shape, page_size=1), requests),
        workload.page_size,
        f"{_describe_batch(requests)}; {workload.describe_shape(has_page_size=False)}",
    )
    first = requests[0]
    if len(set(requests)) == 1:
        yield _Place(BATCH_SIZE, (shape, first), len(requests), f"{_describe_request(first, 2)}; {described}")
        is_prompt = first.qo_len == first.kv_len
        what = "prompt" if is_prompt else "decode" if first.qo_len == 1 else f"verification of {first.qo_len}"
        yield _Place(
            SEQUENCE_LENGTH,
            (shape, len(requests), 0 if is_prompt else first.qo_len),
            first.kv_len,
            f"{_count(len(requests), what)}; {described}",
        )
    decodes, others = (set(workload.subset(some).requests) for some in (workload.decodes, workload.others))
    if len(decodes) == len(others) == 1 and len(workload.others) == 1:
        (decode,), (chunk,) = decodes, others
        num_decodes, cached_len = len(workload.decodes), chunk.kv_len - chunk.qo_len
        yield _Place(
            CHUNK_SIZE,
            (shape, num_decodes, decode, cached_len),
            chunk.qo_len,
            f"a chunk on {cached_len} cached tokens, beside {_describe_batch((decode,) * num_decodes)}; {described}",
        )


def _describe_batch(requests: tuple[Request, ...]) -> str:
    if len(set(requests)) > 1:
        return f"{len(requests)} requests of several lengths"
    return f"{len(requests)} {_describe_request(requests[0], len(requests))}"


def _describe_request(request: Request, count: int) -> str:
    plural = "" if count == 1 else "s"
    if request.qo_len == request.kv_len:
        return f"prompt{plural} of {request.kv_len} tokens"
    if request.qo_len == 1:
        return f"decode{plural} behind {request.kv_len} tokens"
    return f"request{plural} of {request.qo_len} queries on {request.kv_len} tokens"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
