"""Bars of items over time, a row for each CTA: of what was planned, and of what was measured."""

from collections.abc import Sequence
from typing import Any

from onewave._prediction import KINDS, Bar

COLORS = dict(zip(KINDS, ("#1f77b4", "#9ecae1", "#d95f02", "#fdbe85"), strict=True))
INCHES_PER_CTA = 0.06
WIDTH_INCHES = 10


def draw_bars(axes: Any, bars: Sequence[Bar]) -> None:
    """On matplotlib's axes, which get a legend's label for each kind that there is."""
    for kind, color in COLORS.items():
        ours = [bar for bar in bars if bar.kind == kind]
        if not ours:
            continue
        axes.barh(
            [bar.cta for bar in ours],
            [bar.us for bar in ours],
            left=[bar.begin_us for bar in ours],
            height=0.9,
            color=color,
            edgecolor="white",
            linewidth=0.2,
            label=kind,
        )
    axes.invert_yaxis()
    axes.margins(y=0.01)
