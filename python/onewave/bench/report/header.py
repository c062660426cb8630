"""What stands above the tables: the machine, the run, and all workloads in four numbers."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from onewave.bench.result import WorkloadResult

# Keys of a record's header and of its machine, as they are shown first. Others follow by their own names.
LABELS = {
    "device": "device",
    "driver": "driver",
    "power_limit": "power limit, W",
    "max_sm_clock": "highest SM clock, MHz",
    "num_sms": "SMs",
    "cpu": "CPU",
    "onewave": "onewave",
    "commit": "commit",
    "date": "date",
    "torch": "torch",
    "torch_cuda": "torch's CUDA",
    "triton": "triton",
    "flashinfer-python": "FlashInfer",
    "fa3_library_sha256": "FlashAttention-3, SHA-256",
    "python": "Python",
    "seed": "seed",
    "num_runs": "runs",
    "num_warmups": "warm-ups",
    "flush_bytes": "flushed before a run",
}
MIB = 1 << 20
DIGEST_LEN = 12  # of what is shown; the record has all


class Tile(NamedTuple):
    number: str
    what: str


def describe_run(header: dict[str, Any], results: Sequence[WorkloadResult]) -> list[tuple[str, str]]:
    """Labels and values. What is not known is left out."""
    machine = header.get("machine")
    found = {key: value for key, value in header.items() if key != "machine"}
    found |= machine if isinstance(machine, dict) else {}
    shown = [
        (label, _value(key, found.pop(key))) for key, label in LABELS.items() if found.get(key) is not None
    ]
    shown += [(key, _value(key, value)) for key, value in found.items() if value is not None]
    clocks = [clock for result in results for clock in result.clocks_mhz]
    if clocks:
        middle = statistics.median(clocks)
        shown.append(("SM clock, MHz", f"{middle:.0f} ({min(clocks)} to {max(clocks)})"))
    return shown


def title_of(header: dict[str, Any]) -> str:
    """The device, and the version that was measured there."""
    machine = header.get("machine")
    version = machine.get("onewave") if isinstance(machine, dict) else None
    return ", ".join([device_of(header), *([f"onewave {version}"] if version else [])])


def device_of(header: dict[str, Any]) -> str:
    machine = header.get("machine")
    return str(machine.get("device", "")) if isinstance(machine, dict) else ""


def tiles(results: Sequence[WorkloadResult]) -> list[Tile]:
    """All workloads in a few numbers."""
    systems = {entry.system for result in results for entry in result.timed}
    found = [Tile(str(len(results)), f"workloads, {len(systems)} systems timed")]
    pairs = [(result, result.best_peer) for result in results]
    ratios = [result.ratio(peer) for result, peer in pairs if peer is not None]
    known = [ratio for ratio in ratios if ratio is not None]
    if known:
        num_faster = sum(ratio < 1 for ratio in known)
        found.append(Tile(f"{num_faster} of {len(known)}", "workloads faster than the best peer"))
        mean = statistics.geometric_mean(known)
        found.append(Tile(f"{mean:.2f}", "our time over the best peer's, geometric mean"))
    shares = [result.share_of_floor(result.ours) for result in results if result.ours is not None]
    if shares:
        middle = statistics.median(shares)
        found.append(Tile(f"{middle:.2f}" if middle >= 0.01 else f"{middle:.1g}", "of the floor, median"))
    return found


def _value(key: str, value: Any) -> str:
    if key == "flush_bytes" and isinstance(value, int):
        return f"{value / MIB:g} MiB"
    if key == "date":
        return str(value).replace("T", " ")
    if key == "fa3_library_sha256":
        return f"{str(value)[:DIGEST_LEN]}…"
    return str(value)
