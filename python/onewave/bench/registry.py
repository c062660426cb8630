"""The systems by name."""

import importlib.util
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from onewave.bench.peers import flash_attention3, flashinfer
from onewave.bench.result import OURS, OURS_FIXED, OURS_PROFILED, OURS_UNSHARED
from onewave.bench.system import Onewave, Prepare, ProfiledOnewave


def all_systems(fa3_library: Path | None) -> dict[str, Prepare]:
    """In the order in which they are shown."""
    ours: dict[str, Prepare] = {
        OURS: Onewave,
        OURS_FIXED: partial(Onewave, split_policy="fixed"),
        OURS_UNSHARED: partial(Onewave, reads_prefixes_once=False),
        OURS_PROFILED: ProfiledOnewave,
    }
    return {**ours, **flash_attention3.systems(fa3_library), **flashinfer.systems()}


def available_systems(device_type: str, fa3_library: Path | None) -> dict[str, Prepare]:
    """Those that this machine seems to have. Imports none of them."""
    systems: dict[str, Prepare] = {OURS: Onewave}
    if device_type != "cuda":
        return systems
    if fa3_library is not None:
        systems |= flash_attention3.systems(fa3_library)
    if importlib.util.find_spec("flashinfer") is not None:
        systems |= flashinfer.systems()
    return systems


def select_systems(patterns: Sequence[str], fa3_library: Path | None) -> dict[str, Prepare]:
    """Those that a name or glob matches. Raises ValueError for a pattern that matches nothing."""
    systems = all_systems(fa3_library)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in systems):
            raise ValueError(f"system {pattern!r} matches none of {', '.join(systems)}")
    return {
        name: prepare
        for name, prepare in systems.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
