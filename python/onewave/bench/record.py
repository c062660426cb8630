"""A record that `bench --json` wrote, as the objects that wrote it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onewave.bench.ceilings import H200, Ceilings
from onewave.bench.reference import max_relative_error
from onewave.bench.result import Result, WorkloadResult
from onewave.bench.workload import Request, Workload

# Of a workload, as JSON has them too. Records from before one was measured lack it, and mean its default.
PLAIN_FIELDS = (
    *("num_qo_heads", "num_kv_heads", "head_dim", "page_size", "causal", "window_left", "logits_soft_cap"),
    *("prefix_len", "num_ctas", "num_graph_nodes", "lens_seed"),
)
DTYPE_FIELDS = ("dtype", "kv_dtype")


@dataclass(frozen=True)
class Record:
    """`header`: machine, commit, seed and options of the run, as write_json() takes them."""

    header: dict[str, Any]
    results: list[WorkloadResult]


def read_record(path: Path) -> Record:
    """What was measured, to what its JSON keeps of it: a plan's time is the median alone, and a system that failed has
    no times. Derived figures are computed anew. Raises ValueError for a file that is no such record, OSError for none."""
    try:
        record = json.loads(path.read_text())
        ceilings = _ceilings(record)
        results = [_workload_result(workload, ceilings) for workload in record["workloads"]]
        header = {key: value for key, value in record.items() if key not in ("ceilings", "workloads")}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of bench --json: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} is no record of bench --json: it has no {error}") from error
    return Record(header, results)


def _ceilings(record: dict[str, Any]) -> Ceilings:
    """One run's GPU has one; a record of no workloads has none, and needs none."""
    found = [Ceilings(**entry) for entry in record["ceilings"]]
    if len(found) > 1:
        raise ValueError("ceilings must be those of one GPU")
    return found[0] if found else H200


def _workload_result(entry: dict[str, Any], ceilings: Ceilings) -> WorkloadResult:
    fields = {name: entry[name] for name in PLAIN_FIELDS if name in entry}
    fields |= {name: _dtype(entry[name]) for name in DTYPE_FIELDS if name in entry}
    groups = [(Request(kv_len, qo_len), count) for kv_len, qo_len, count in entry["requests"]]
    requests = tuple(request for request, count in groups for _ in range(count))
    workload = Workload(_text(entry["workload"]), requests, **fields)
    results = [_result(system, workload) for system in entry["systems"]]
    return WorkloadResult(workload, results, list(entry["sm_clocks_mhz"]), ceilings)


def _result(entry: dict[str, Any], workload: Workload) -> Result:
    result = Result(_text(entry["system"]), max_relative_error=max_relative_error(workload))
    if "times_us" not in entry:
        result.is_unsupported = "unsupported" in entry
        result.failure = entry["unsupported" if result.is_unsupported else "failure"]
        return result
    result.times_us = [_time(us) for us in entry["times_us"]]
    result.plan_us, result.plan_done_us = (
        [_time(entry[name])] if name in entry else [] for name in ("plan_us", "plan_done_us")
    )
    error = entry["relative_error"]
    result.relative_error = None if error is None else float(error)
    return result


def _time(us: Any) -> float:
    if not (isinstance(us, (int, float)) and math.isfinite(us) and us > 0):
        raise ValueError(f"a time is {us!r}; it must be a positive number of microseconds")
    return us


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name is {name!r}; it must be a string")
    return name


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"a dtype is {name!r}; it must be one of torch's")
    return dtype
