"""What was measured: a record per system and workload, and the JSON of all."""

import json
import statistics
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from onewave.bench.ceilings import H200, Ceilings
from onewave.bench.reference import MAX_RELATIVE_ERROR
from onewave.bench.workload import Workload

OURS = "onewave"
# Of this package too, but not what peers are compared with.
OURS_FIXED = "onewave_fixed"
# Without prefix_groups: each request reads what it shares with others for itself.
OURS_UNSHARED = "onewave_unshared"


# With plan(use_profiler=True).
OURS_PROFILED = "onewave_profiled"


def is_ours(system: str) -> bool:
    return system in (OURS, OURS_FIXED, OURS_UNSHARED, OURS_PROFILED)


@dataclass
class Result:
    """Of one system on one workload; times in microseconds."""

    system: str
    times_us: list[float] = field(default_factory=list)
    plan_us: list[float] = field(default_factory=list)  # until plan() returns
    plan_done_us: list[float] = field(default_factory=list)  # until the device is done with it too
    relative_error: float | None = None  # of out against float32; None: not compared
    max_relative_error: float = MAX_RELATIVE_ERROR  # of a right one
    failure: str | None = None  # one line: why there are no times
    is_unsupported: bool = False  # the failure is a property of the system or the machine

    @property
    def us(self) -> float:
        return statistics.median(self.times_us)

    @property
    def is_timed(self) -> bool:
        return self.failure is None and bool(self.times_us)

    @property
    def is_right(self) -> bool:
        return self.relative_error is None or self.relative_error <= self.max_relative_error

    def rounded(self) -> "Result":
        """Times of runs to 0.01 us."""
        return replace(self, times_us=[round(us, 2) for us in self.times_us])


@dataclass
class WorkloadResult:
    """Systems measured by turns in one process."""

    workload: Workload
    results: list[Result]
    clocks_mhz: list[int] = field(default_factory=list)
    ceilings: Ceilings = H200

    @property
    def timed(self) -> list[Result]:
        return [result for result in self.results if result.is_timed]

    @property
    def ours(self) -> Result | None:
        return next((result for result in self.timed if result.system == OURS), None)

    @property
    def best_peer(self) -> Result | None:
        """The fastest of the others whose output is right."""
        peers = [result for result in self.timed if not is_ours(result.system) and result.is_right]
        return min(peers, key=lambda result: result.us, default=None)

    def ratio(self, peer: Result) -> float | None:
        """Our time over the peer's."""
        return None if self.ours is None else self.ours.us / peer.us

    @property
    def floor_us(self) -> float:
        return self.workload.floor_us(self.ceilings)

    def share_of_floor(self, result: Result) -> float:
        return self.floor_us / result.us

    def gb_per_s(self, result: Result) -> float:
        return self.workload.num_bytes / result.us * 1e-3

    def tflop_per_s(self, result: Result) -> float:
        return self.workload.num_flop / result.us * 1e-6

    def to_json(self) -> dict[str, Any]:
        """All figures are of the times as written here, so that a record that is read and written again is the same."""
        return replace(self, results=[result.rounded() for result in self.results])._rounded_to_json()

    def _rounded_to_json(self) -> dict[str, Any]:
        workload = self.workload
        return {
            "workload": workload.name,
            # As [kv_len, qo_len, number of requests side by side].
            "requests": [[*request, len(list(group))] for request, group in groupby(workload.requests)],
            "lens_seed": workload.lens_seed,
            "num_qo_heads": workload.num_qo_heads,
            "num_kv_heads": workload.num_kv_heads,
            "head_dim": workload.head_dim,
            "page_size": workload.page_size,
            "causal": workload.causal,
            "window_left": workload.window_left,
            "logits_soft_cap": workload.logits_soft_cap,
            "prefix_len": workload.prefix_len,
            "dtype": str(workload.dtype).removeprefix("torch."),
            "kv_dtype": str(workload.kv_dtype).removeprefix("torch."),
            "num_ctas": workload.num_ctas,
            "num_graph_nodes": workload.num_graph_nodes,
            "num_bytes": workload.num_bytes,
            "num_flop": workload.num_flop,
            "floor_us": round(self.floor_us, 2),
            "sm_clocks_mhz": self.clocks_mhz,
            "systems": [self._result_to_json(result) for result in self.results],
        }

    def _result_to_json(self, result: Result) -> dict[str, Any]:
        if not result.is_timed:
            kind = "unsupported" if result.is_unsupported else "failure"
            return {"system": result.system, kind: result.failure}
        ratio = None if result.system == OURS else self.ratio(result)
        plan_times = {"plan_us": result.plan_us, "plan_done_us": result.plan_done_us}
        return {
            "system": result.system,
            "us": round(result.us, 2),
            "min_us": round(min(result.times_us), 2),
            "max_us": round(max(result.times_us), 2),
            "times_us": result.times_us,
            "share_of_floor": round(self.share_of_floor(result), 4),
            "gb_per_s": round(self.gb_per_s(result), 1),
            "tflop_per_s": round(self.tflop_per_s(result), 1),
            **{name: round(statistics.median(times), 1) for name, times in plan_times.items() if times},
            # JSON has no infinity.
            "relative_error": "inf" if result.relative_error == float("inf") else result.relative_error,
            "is_right": result.is_right,
            "ours_over_this": None if ratio is None else round(ratio, 4),
        }


def write_json(path: Path, header: dict[str, Any], results: list[WorkloadResult]) -> None:
    """`header`: machine, commit, seed and options of the run."""
    floors = [asdict(ceilings) for ceilings in dict.fromkeys(result.ceilings for result in results)]
    record = header | {"ceilings": floors, "workloads": [result.to_json() for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
