"""A trace as Perfetto and chrome://tracing open it: the Trace Event Format, JSON
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).

A process for each run, with a thread for each track of each CTA, by SM, and counters of the CTAs that are busy with
each kind of item; and another for what the plan had predicted. The phases inside an item are sums, laid side by side
in their order, and not when they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onewave import _core
from onewave.trace.records import PHASES, Item, Run, Track

Event = dict[str, Any]
# Above the number of any process: a thread with the number of its process would be shown as the main one.
FIRST_TID = 100_000


def write_chrome(path: Path, runs: Sequence[Run], other: dict[str, str]) -> None:
    """`other`: what the file says about itself."""
    events: list[Event] = []
    first_ns = min((run.begin_ns for run in runs), default=0)
    for i, run in enumerate(runs):
        shift_us = 1e-3 * (run.begin_ns - first_ns)
        events += _run_events(2 * i + 1, run, shift_us)
        events += _prediction_events(2 * i + 2, run, shift_us)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}
    path.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")


def _run_events(pid: int, run: Run, shift_us: float) -> Iterator[Event]:
    yield from _process(pid, run.name)
    for cta in run.ctas:
        num_tracks = max((len(item.tracks) for item in cta.items), default=0)
        for i in range(num_tracks):
            tid = _tid(cta.index, i)
            name = f"SM {cta.sm}, CTA {cta.index}"
            if num_tracks > 1:
                name += f", warpgroup {i}"
            yield from _thread(pid, tid, name, cta.sm * _core.MAX_PROFILE_TRACKS + i)
            for item in cta.items:
                yield from _item_events(pid, tid, item, item.tracks[i], shift_us)
    yield from _busy_counters(pid, run, shift_us)


def _tid(cta: int, track: int) -> int:
    return FIRST_TID + cta * _core.MAX_PROFILE_TRACKS + track


def _item_events(pid: int, tid: int, item: Item, track: Track, shift_us: float) -> Iterator[Event]:
    begin_us, end_us = shift_us + track.begin_us, shift_us + track.end_us
    phases = {phase: us for phase in PHASES if (us := track.phases_us[phase]) > 0}
    yield _slice(pid, tid, _name(item), item.kind, begin_us, end_us) | {
        "args": {
            "request": item.request,
            "keys": f"{item.kv_begin}..{item.kv_end}",
            "packed rows": f"{item.row_begin}..{item.row_begin + item.num_rows}",
            "kv heads": f"{item.kv_head}..{item.kv_head + item.num_heads}",
            "split": item.split_idx if item.split_tile >= 0 else "no",
            **{f"{phase}, us": round(us, 3) for phase, us in phases.items()},
        }
    }
    for phase, us in phases.items():
        phase_end_us = min(begin_us + us, end_us)
        yield _slice(pid, tid, phase, "phase", begin_us, phase_end_us)
        begin_us = phase_end_us


def _name(item: Item) -> str:
    split = f" split {item.split_idx}" if item.split_tile >= 0 else ""
    return f"{'wide' if item.is_wide else 'narrow'} request {item.request}{split}"


def _busy_counters(pid: int, run: Run, shift_us: float) -> Iterator[Event]:
    changes = sorted(
        (us, item.is_wide, step) for item in run.items for us, step in ((item.begin_us, 1), (item.end_us, -1))
    )
    busy = {"narrow": 0, "wide": 0}
    for us, is_wide, step in changes:
        busy["wide" if is_wide else "narrow"] += step
        yield {"ph": "C", "pid": pid, "name": "busy CTAs", "ts": shift_us + us, "args": dict(busy)}


def _prediction_events(pid: int, run: Run, shift_us: float) -> Iterator[Event]:
    if run.prediction is None:
        return
    yield from _process(pid, f"{run.name}, predicted")
    for cta in sorted({bar.cta for bar in run.prediction}):
        yield from _thread(pid, _tid(cta, 0), f"CTA {cta}", cta)
    shift_us += run.first_item_us
    for bar in run.prediction:
        begin_us = shift_us + bar.begin_us
        yield _slice(pid, _tid(bar.cta, 0), bar.kind, bar.kind, begin_us, begin_us + bar.us)


def _process(pid: int, name: str) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}


def _thread(pid: int, tid: int, name: str, rank: int) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": rank}}


def _slice(pid: int, tid: int, name: str, category: str, begin_us: float, end_us: float) -> Event:
    """In whole nanoseconds, as readers round: or what lies inside another might end behind it."""
    begin_ns, end_ns = round(1000 * begin_us), round(1000 * end_us)
    # A comma would make two categories.
    event = {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": category.replace(",", "")}
    return event | {"ts": begin_ns / 1000, "dur": (end_ns - begin_ns) / 1000}
