"""How a system looks on the whole page: a marker and a colour for light and for dark, told apart by either.

A test holds that each colour stands out from the page (3 to 1, as WCAG 2.1 asks of graphics).
"""

from collections.abc import Iterable
from typing import NamedTuple


class Look(NamedTuple):
    """Of a system."""

    marker: str  # matplotlib's
    light: str
    dark: str
    what: str = ""


class Ink(NamedTuple):
    """Of what is no system; `name` is that of the page's CSS variable."""

    name: str
    light: str
    dark: str


# Hues go by project: blue ours, orange to violet FlashAttention-3's, green FlashInfer's.
LOOKS = {
    "onewave": Look("o", "#1257c9", "#6cabff", "this package, one launch"),
    "onewave_fixed": Look(
        "p", "#0f7fa8", "#56c7ec", 'the same with split_policy="fixed", bitwise the same in every batch'
    ),
    "onewave_unshared": Look(
        "h", "#5b6bbf", "#a8b4f5", "the same, each request reads a shared prefix itself"
    ),
    "onewave_profiled": Look("8", "#3d7fd9", "#8fc0ff", "the same with the profiler"),
    "fa3": Look("s", "#c8480b", "#ff9750", "FlashAttention-3 in one launch"),
    "fa3_split": Look("X", "#8a5a00", "#e3b341", "FlashAttention-3 in two launches: decodes, then the rest"),
    "fa3_streams16": Look(
        "^", "#b5306b", "#ff8ab8", "FlashAttention-3 on two streams, 16 SMs left to the decodes"
    ),
    "fa3_streams33": Look(">", "#962d9e", "#e39bea", "the same, 33 SMs"),
    "fa3_streams44": Look("v", "#6f3fc0", "#b99cff", "the same, 44 SMs"),
    "fa3_streams66": Look("<", "#6b4a3a", "#c9a48f", "the same, 66 SMs"),
    "fi_batch": Look("D", "#157a3c", "#4fd07f", "FlashInfer's BatchAttention"),
    "fi_split": Look(
        "P", "#4f7300", "#a5cf4c", "FlashInfer's decode wrapper, and its prefill wrapper for the rest"
    ),
}
# Of systems that are not in the list, by turns.
OTHER_LOOKS = (
    Look("d", "#55606e", "#aab6c4"),
    Look("H", "#a33a3a", "#f09a9a"),
    Look("*", "#2a7a74", "#63cfc6"),
)

INK = Ink("ink", "#1b222c", "#e7ebf0")
MUTED = Ink("muted", "#5a6675", "#9eabba")
GRID = Ink("grid", "#dde2e9", "#313a46")
PAPER = Ink("paper", "#fefefe", "#14191f")
INKS = (INK, MUTED, GRID, PAPER)


class Palette:
    """The looks of a record's systems, and their names in the page's CSS."""

    def __init__(self, systems: Iterable[str]) -> None:
        others = 0
        self.looks: dict[str, Look] = {}
        for system in dict.fromkeys(systems):
            look = LOOKS.get(system)
            if look is None:
                look = OTHER_LOOKS[others % len(OTHER_LOOKS)]
                others += 1
            self.looks[system] = look

    @property
    def systems(self) -> list[str]:
        return list(self.looks)

    def variable(self, system: str) -> str:
        """CSS's, which no name in a record can spoil."""
        return f"--system-{self.systems.index(system)}"

    def replacements(self) -> dict[str, str]:
        """What stands for a colour of a figure in the page, by the colour of the light scheme."""
        inks = {ink.light: f"var(--{ink.name})" for ink in INKS}
        return inks | {look.light: f"var({self.variable(system)})" for system, look in self.looks.items()}
