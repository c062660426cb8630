"""A profile's bytes (cpp/include/onewave/profile.h) as records, with times in microseconds."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from onewave import _core
from onewave._plan_records import record_of
from onewave._prediction import Bar, kind_of

PHASES: tuple[str, ...] = tuple(_core.PROFILE_PHASES)


@dataclass(frozen=True)
class Track:
    """What one consumer warpgroup spent on an item (on a CPU a thread)."""

    begin_us: float
    end_us: float
    phases_us: Mapping[str, float]  # by PHASES: sums, not when


@dataclass(frozen=True)
class Item:
    """An item of the work list as it was run, for the kv heads of one step."""

    cta: int
    is_wide: bool
    request: int
    q_token_begin: int
    row_begin: int  # packed rows
    num_rows: int
    kv_begin: int
    kv_end: int
    kv_head: int
    num_heads: int
    split_tile: int  # -1: its keys are not split
    split_idx: int
    tracks: tuple[Track, ...]

    @property
    def begin_us(self) -> float:
        """Of the tracks on average: so a CTA is with one item at a time."""
        return statistics.fmean(track.begin_us for track in self.tracks)

    @property
    def end_us(self) -> float:
        return statistics.fmean(track.end_us for track in self.tracks)

    @property
    def us(self) -> float:
        return self.end_us - self.begin_us

    @property
    def kind(self) -> str:
        """narrow, wide, and whether it is a split."""
        return kind_of(self.is_wide, self.split_tile >= 0)


@dataclass(frozen=True)
class Cta:
    """A CTA of the launch, on its SM (on a CPU a thread)."""

    index: int
    sm: int
    begin_us: float
    end_us: float
    items: tuple[Item, ...]
    num_lost: int  # items for which the buffer had no room


@dataclass(frozen=True)
class Run:
    """One run(). Time 0 is when its first CTA began."""

    name: str
    window: int  # of the plan's
    begin_ns: int  # of the GPU's timer: what runs have in common
    clock_mhz: float  # of the SMs, on average
    ctas: tuple[Cta, ...]
    prediction: tuple[Bar, ...] | None = None  # the plan's, from the first item's begin on; None: of a CPU

    @property
    def items(self) -> list[Item]:
        return [item for cta in self.ctas for item in cta.items]

    @property
    def us(self) -> float:
        return max((cta.end_us for cta in self.ctas), default=0.0)

    @property
    def first_item_us(self) -> float:
        """When the first item began: before it a CTA reads the plan."""
        return min((item.begin_us for item in self.items), default=0.0)

    @property
    def num_lost(self) -> int:
        return sum(cta.num_lost for cta in self.ctas)


def read_run(buffer: torch.Tensor, name: str) -> Run | None:
    """Of a uint8 buffer on the host, that of one run; None: nothing has been written to it.

    Raises ValueError for what another version wrote.
    """
    header_size, header_fields = _core.profile_layout()["ProfileHeader"]
    header = record_of(_bytes(buffer[:header_size]), header_fields, 0)
    if header["magic"] != _core.PROFILE_MAGIC:
        return None
    if header["version"] != _core.PROFILE_VERSION:
        raise ValueError(f"the profile is of version {header['version']}; it must be {_core.PROFILE_VERSION}")
    cta_size, cta_fields = _core.profile_layout()["CtaProfile"]
    item_size, _ = _core.profile_layout()["ItemProfile"]
    num_ctas, max_items = header["num_ctas"], header["max_items"]
    items_begin = header_size + num_ctas * cta_size
    data = _bytes(buffer[header_size:items_begin])
    records = [record_of(data, cta_fields, i * cta_size) for i in range(num_ctas)]
    begin_ns = min(record["begin_ns"] for record in records)
    us_per_clock = _us_per_clock(records)
    items = buffer[items_begin : items_begin + num_ctas * max_items * item_size]
    words = items.view(torch.int32).view(num_ctas, max_items, -1)
    ctas = []
    for i, record in enumerate(records):
        begin_us = 1e-3 * (record["begin_ns"] - begin_ns)
        num_items = min(record["num_items"], max_items)
        rows = words[i, :num_items].tolist()
        ctas.append(
            Cta(
                index=i,
                sm=record["sm"],
                begin_us=begin_us,
                end_us=begin_us + us_per_clock * (record["end_clock"] - record["begin_clock"]),
                items=tuple(_item(i, row, header["num_tracks"], begin_us, us_per_clock) for row in rows),
                num_lost=record["num_items"] - num_items,
            )
        )
    return Run(name, header["window"], begin_ns, 1 / us_per_clock, tuple(ctas))


def _us_per_clock(records: list[dict[str, Any]]) -> float:
    """Of all CTAs together: the timer goes in steps of up to a microsecond, and all SMs have one clock."""
    num_ns = sum(record["end_ns"] - record["begin_ns"] for record in records)
    num_clocks = sum(record["end_clock"] - record["begin_clock"] for record in records)
    return 1e-3 * (num_ns / num_clocks if num_clocks > 0 and num_ns > 0 else 1.0)


def _item(cta: int, row: list[int], num_tracks: int, begin_us: float, us_per_clock: float) -> Item:
    words = _item_words()
    tracks = []
    for first in words.tracks[:num_tracks]:
        begin, end, *cycles = row[first : first + 2 + len(PHASES)]
        # Words are read as signed.
        tracks.append(
            Track(
                begin_us=begin_us + us_per_clock * (begin % 2**32),
                end_us=begin_us + us_per_clock * (end % 2**32),
                phases_us={
                    phase: us_per_clock * (n % 2**32) for phase, n in zip(PHASES, cycles, strict=True)
                },
            )
        )
    fields = {name: row[word] for name, word in words.fields.items()}
    return Item(cta=cta, is_wide=bool(row[words.is_wide]), tracks=tuple(tracks), **fields)


class _ItemWords(NamedTuple):
    """Where the words of an ItemProfile are, all of 32 bits."""

    fields: dict[str, int]  # of Item
    is_wide: int
    tracks: list[int]  # of each the first word


@functools.cache
def _item_words() -> _ItemWords:
    layout = _core.profile_layout()
    _, item_fields = _core.plan_layout()["WorkItem"]
    size, own_fields = layout["ItemProfile"]
    words = {name: offset // 4 for name, _, offset in item_fields + own_fields}
    names = [field.name for field in dataclasses.fields(Item)]
    track_size, _ = layout["ProfileTrack"]
    assert _core.PROFILE_CYCLES_OFFSET == 8  # behind begin and end
    return _ItemWords(
        {name: words[name] for name in names if name not in ("cta", "is_wide", "tracks")},
        words["is_wide"],
        [offset // 4 for offset in range(_core.PROFILE_TRACKS_OFFSET, size, track_size)],
    )


def _bytes(data: torch.Tensor) -> bytes:
    return bytes(data.tolist())
