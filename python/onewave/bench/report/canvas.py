"""What the figures have in common. Their colours are those of the light scheme, for which the page puts its own."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from onewave._matplotlib import import_pyplot
from onewave.bench.report.palette import GRID, INK, MUTED, PAPER, Palette
from onewave.bench.report.svg import SVG_STYLE
from onewave.bench.result import OURS

# Of a figure, in points: CSS pixels where it is shown in its own size.
WIDTH = 400
POINTS_PER_INCH = 72
MARKER_SIZE = 6.0
# Axes of shares begin at 0, unless all are below: an executor on a CPU.
SMALL_SHARE = 0.1
MIN_LOG_RANGE = 3
LEGEND_ROW = 15  # points
LETTER = 6.5  # points of a label's width
MAX_LABEL_LEN = 60
SMALL = 10


@contextmanager
def new_figure(height: float, systems: Sequence[str] = ()) -> Iterator[Any]:
    """`height` in points, beside what the legend of `systems` takes."""
    pyplot = import_pyplot("--report")
    height += LEGEND_ROW * math.ceil(len(systems) / _legend_columns(systems))
    with pyplot.rc_context(SVG_STYLE):
        size = (WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH)
        figure = pyplot.figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        try:
            yield figure
        finally:
            pyplot.close(figure)


def style_axes(axes: Any, has_grid: bool = False) -> None:
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED.light)
    axes.tick_params(which="both", colors=MUTED.light, labelsize=SMALL, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(MUTED.light)
    if has_grid:
        axes.grid(color=GRID.light, linewidth=0.7)


def plot_dot(axes: Any, x: float, y: float, system: str, palette: Palette, is_right: bool = True) -> None:
    """A cross where the result is wrong."""
    look = palette.looks[system]
    size = MARKER_SIZE + (1 if system == OURS else 0)
    axes.plot(
        [x],
        [y],
        linestyle="",
        marker=look.marker if is_right else "x",
        color=look.light,
        markersize=size,
        markeredgecolor=PAPER.light if is_right else look.light,
        markeredgewidth=0.7 if is_right else 2.2,
        zorder=4 if system == OURS else 3,
    )


def make_logarithmic(axes: Any, side: str) -> None:
    """`side`: "x" or "y", after all is plotted. Labels without powers, and as many as the range wants; linear from 0
    where all values are of one size."""
    axes.set(**{f"{side}scale": "log"})
    low, high = getattr(axes, f"get_{side}lim")()
    if high < MIN_LOG_RANGE * low:
        axes.set(**{f"{side}scale": "linear", f"{side}lim": (0, 1.05 * high)})
        return
    labelled = "23457" if high < 10 * low else "25" if high < 200 * low else ""
    axis = getattr(axes, f"{side}axis")
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in labelled else "")


def make_binary(axes: Any, values: Iterable[int]) -> None:
    """The x axis by powers of two."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: binary(value))
    axes.xaxis.set_minor_formatter("")
    axes.xaxis.set_tick_params(which="minor", length=0)
    if len(ticks := sorted(set(values))) <= 5:
        axes.set_xticks(ticks)


def binary(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def make_share(axes: Any, side: str, shares: Sequence[float]) -> None:
    """Linear from 0, with a line at 1; logarithmic where all are small."""
    largest = max(shares, default=1.0)
    if 0 < largest < SMALL_SHARE:
        make_logarithmic(axes, side)
        return
    axes.set(**{f"{side}lim": (0, max(1.05, 1.05 * largest))})
    draw_line = axes.axvline if side == "x" else axes.axhline
    draw_line(1, color=INK.light, linewidth=1, zorder=1)


def present(palette: Palette, systems: Iterable[str]) -> list[str]:
    """Those that take part, in the palette's order."""
    found = set(systems)
    return [system for system in palette.looks if system in found]


def short(label: str) -> str:
    """For a figure, which a name of any length would push aside; the tables have the whole."""
    return label if len(label) <= MAX_LABEL_LEN else f"{label[: MAX_LABEL_LEN - 1]}…"


def _legend_columns(systems: Sequence[str]) -> int:
    longest = max((len(short(system)) for system in systems), default=1)
    return max(1, int(WIDTH / (LETTER * (longest + 4))))


def add_legend(figure: Any, axes: Any, systems: Sequence[str], palette: Palette) -> None:
    handles = []
    for system in systems:
        look = palette.looks[system]
        (handle,) = axes.plot(
            *([], []),
            linestyle="",
            marker=look.marker,
            color=look.light,
            markeredgecolor=PAPER.light,
            markersize=MARKER_SIZE,
            label=short(system),
        )
        handles.append(handle)
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=_legend_columns(systems),
            fontsize=SMALL,
            frameon=False,
            labelcolor=INK.light,
            handletextpad=0.1,
            columnspacing=1.0,
            borderpad=0,
        )
