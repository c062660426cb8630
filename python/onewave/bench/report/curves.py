"""Curves over one number: times above, shares of the floor below."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from onewave.bench.report.canvas import (
    MARKER_SIZE,
    add_legend,
    make_binary,
    make_logarithmic,
    make_share,
    new_figure,
    plot_dot,
    style_axes,
)
from onewave.bench.report.palette import PAPER, Palette
from onewave.bench.report.series import Series
from onewave.bench.report.svg import inline_svg
from onewave.bench.result import OURS

HEIGHT = 340  # points


class Point(NamedTuple):
    x: int
    us: float
    share: float  # of the floor
    is_right: bool


def points_of(series: Series) -> dict[str, list[Point]]:
    """By system, in the order of x."""
    points: dict[str, list[Point]] = {}
    for x, result in series.sorted():
        for entry in result.timed:
            share = result.share_of_floor(entry)
            points.setdefault(entry.system, []).append(Point(x, entry.us, share, entry.is_right))
    return points


def scaling_plot(name: str, alt: str, series: Series, palette: Palette) -> str:
    """SVG. Curves go through right results only; crosses are wrong ones."""
    points = points_of(series)
    systems = [system for system in palette.looks if system in points]
    with new_figure(HEIGHT, systems) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for axes in (upper, lower):
            style_axes(axes, has_grid=True)
        for system in systems:
            _plot_curve(upper, lower, system, points[system], palette)
        make_binary(lower, series.results)
        if any(points.values()):
            make_logarithmic(upper, "y")
        upper.set_ylabel("us")
        make_share(lower, "y", [point.share for some in points.values() for point in some if point.is_right])
        lower.set_ylabel("of the floor")
        lower.set_xlabel(series.axis.label)
        add_legend(figure, upper, systems, palette)
        return inline_svg(figure, name, alt, palette.replacements())


def _plot_curve(upper: Any, lower: Any, system: str, points: Sequence[Point], palette: Palette) -> None:
    look = palette.looks[system]
    right = [point for point in points if point.is_right]
    for axes, values in ((upper, [point.us for point in right]), (lower, [point.share for point in right])):
        axes.plot(
            [point.x for point in right],
            values,
            marker=look.marker,
            color=look.light,
            markersize=MARKER_SIZE - 0.5,
            markeredgecolor=PAPER.light,
            markeredgewidth=0.6,
            linewidth=2.2 if system == OURS else 1.2,
            zorder=4 if system == OURS else 3,
        )
    for point in points:
        if not point.is_right:
            plot_dot(upper, point.x, point.us, system, palette, is_right=False)
