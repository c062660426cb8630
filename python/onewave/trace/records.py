"""A profile's bytes (cpp/include/onewave/profile.h) as records, with times in microseconds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from onewave import _core
from onewave._prediction import Bar, kind_of

PHASES: tuple[str, ...] = tuple(_core.PROFILE_PHASES)
# An item waits in these: for what is loaded, for the other warpgroup, for the other threads of a split.
WAITS = tuple(phase for phase in PHASES if phase.startswith("wait")) + ("arrive",)


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
        return min(track.begin_us for track in self.tracks)

    @property
    def end_us(self) -> float:
        return max(track.end_us for track in self.tracks)

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
    predicted_us: float  # by the plan, the launch included; 0: it has no work, or is a thread
    items: tuple[Item, ...]
    num_lost: int  # items for which the buffer had no room


@dataclass(frozen=True)
class Run:
    """One run(). Time 0 is when its first CTA began."""

    name: str
    begin_ns: int  # of the GPU's timer: what runs have in common
    clock_mhz: float  # of the SMs, on average
    ctas: tuple[Cta, ...]
    prediction: tuple[Bar, ...] | None = None  # of the plan, likewise from 0; None: of threads of a CPU

    @property
    def items(self) -> list[Item]:
        return [item for cta in self.ctas for item in cta.items]

    @property
    def us(self) -> float:
        return max((cta.end_us for cta in self.ctas), default=0.0)

    @property
    def num_lost(self) -> int:
        return sum(cta.num_lost for cta in self.ctas)


def read_run(buffer: torch.Tensor, name: str) -> Run | None:
    """Of a uint8 buffer on the host, that of one run; None: nothing has been written to it.

    Raises ValueError for what another version wrote.
    """
    header = _fields(buffer, "ProfileHeader", 0)
    if header["magic"] != _core.PROFILE_MAGIC:
        return None
    if header["version"] != _core.PROFILE_VERSION:
        raise ValueError(f"the profile is of version {header['version']}; it must be {_core.PROFILE_VERSION}")
    size, _ = _core.profile_layout()["CtaProfile"]
    begin, _ = _core.profile_layout()["ProfileHeader"]
    records = [_fields(buffer, "CtaProfile", begin + i * size) for i in range(header["num_ctas"])]
    begin_ns = min(record["begin_ns"] for record in records)
    # Of all CTAs together: the timer goes in steps of up to a microsecond, and all SMs have one clock.
    num_ns = sum(record["end_ns"] - record["begin_ns"] for record in records)
    num_clocks = sum(record["end_clock"] - record["begin_clock"] for record in records)
    us_per_clock = 1e-3 * (num_ns / num_clocks if num_clocks > 0 and num_ns > 0 else 1.0)
    item_size, _ = _core.profile_layout()["ItemProfile"]
    items_begin = begin + len(records) * size
    num_bytes = len(records) * header["max_items"] * item_size
    words = (
        buffer[items_begin : items_begin + num_bytes].view(torch.int32).view(len(records), -1, item_size // 4)
    )
    ctas = []
    for i, record in enumerate(records):
        begin_us = 1e-3 * (record["begin_ns"] - begin_ns)
        num_items = min(record["num_items"], header["max_items"])
        items = tuple(
            _item(i, row, header["num_tracks"], begin_us, us_per_clock)
            for row in words[i, :num_items].tolist()
        )
        end_us = begin_us + us_per_clock * (record["end_clock"] - record["begin_clock"])
        ctas.append(
            Cta(
                index=i,
                sm=record["sm"],
                begin_us=begin_us,
                end_us=end_us,
                predicted_us=record["predicted_us"],
                items=items,
                num_lost=record["num_items"] - num_items,
            )
        )
    return Run(name, begin_ns, 1 / us_per_clock, tuple(ctas))


def _item(cta: int, row: list[int], num_tracks: int, begin_us: float, us_per_clock: float) -> Item:
    fields = {name: row[word] for name, word in _item_words().items()}
    track_size, track_fields = _core.profile_layout()["ProfileTrack"]
    words = {name: offset // 4 for name, _, offset in track_fields}
    tracks = []
    for i in range(num_tracks):
        track = row[(_core.PROFILE_TRACKS_OFFSET + i * track_size) // 4 :]
        first_phase = _core.PROFILE_CYCLES_OFFSET // 4
        cycles = track[first_phase : first_phase + len(PHASES)]
        # Words are read as signed.
        tracks.append(
            Track(
                begin_us=begin_us + us_per_clock * (track[words["begin"]] % 2**32),
                end_us=begin_us + us_per_clock * (track[words["end"]] % 2**32),
                phases_us={
                    phase: us_per_clock * (n % 2**32) for phase, n in zip(PHASES, cycles, strict=True)
                },
            )
        )
    is_wide = bool(fields.pop("is_wide"))
    return Item(cta=cta, is_wide=is_wide, tracks=tuple(tracks), **fields)


@functools.cache
def _item_words() -> dict[str, int]:
    """Of an item's fields, all of 32 bits, the index of each."""
    _, fields = _core.profile_layout()["ItemProfile"]
    return {name: offset // 4 for name, _, offset in fields}


def _fields(buffer: torch.Tensor, record: str, begin: int) -> dict[str, Any]:
    size, fields = _core.profile_layout()[record]
    dtypes = {"i": torch.int32, "I": torch.uint32, "Q": torch.int64, "f": torch.float32}
    data = buffer[begin : begin + size]
    return {
        name: data.view(dtypes[code])[offset // dtypes[code].itemsize].item() for name, code, offset in fields
    }
