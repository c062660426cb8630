"""Rows of dots: a workload's systems, a family's workloads."""

from collections.abc import Sequence
from typing import NamedTuple

from onewave.bench.report.canvas import (
    SMALL,
    add_legend,
    make_logarithmic,
    make_share,
    new_figure,
    plot_dot,
    present,
    short,
    style_axes,
)
from onewave.bench.report.palette import GRID, INK, MUTED, Palette
from onewave.bench.report.svg import inline_svg

ROW_HEIGHT = 33  # points
# Of the axis and its label.
MARGIN = 52


class Dot(NamedTuple):
    system: str
    value: float
    is_right: bool = True


class Row(NamedTuple):
    label: str
    dots: list[Dot]
    mark: float | None = None  # a short line: the floor, or a median


def dot_plot(
    name: str,
    alt: str,
    rows: Sequence[Row],
    label: str,
    palette: Palette,
    is_share: bool = False,
    has_legend: bool = True,
) -> str:
    """SVG. Labels stand above their rows, so that long ones leave the width to the dots. Shares of the floor are linear,
    the rest is logarithmic; crosses are wrong results."""
    systems = present(palette, (dot.system for row in rows for dot in row.dots)) if has_legend else []
    with new_figure(MARGIN + ROW_HEIGHT * len(rows), systems) as figure:
        axes = figure.subplots()
        style_axes(axes)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        for y, row in enumerate(rows):
            axes.axhline(y, color=GRID.light, linewidth=0.8, zorder=0)
            if row.mark is not None:
                axes.plot([row.mark], [y], "|", color=INK.light, markersize=11, markeredgewidth=1.6, zorder=5)
            for dot in row.dots:
                plot_dot(axes, dot.value, y, dot.system, palette, dot.is_right)
            axes.annotate(
                short(row.label),
                (0, y),
                xycoords=("axes fraction", "data"),
                xytext=(1, 8),
                textcoords="offset points",
                color=MUTED.light,
                fontsize=SMALL,
            )
        axes.set_ylim(len(rows) - 0.5, -0.9)
        if is_share:
            make_share(axes, "x", [dot.value for row in rows for dot in row.dots])
        else:
            make_logarithmic(axes, "x")
        axes.set_xlabel(label)
        add_legend(figure, axes, systems, palette)
        return inline_svg(figure, name, alt, palette.replacements())
