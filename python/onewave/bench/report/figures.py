"""The figures of the page, from results."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from onewave.bench.report.curves import scaling_plot
from onewave.bench.report.dots import Dot, Row, dot_plot
from onewave.bench.report.families import FamilyResults
from onewave.bench.report.palette import Palette
from onewave.bench.report.roofline import roofline_plot
from onewave.bench.report.series import AXES, Axis, Series
from onewave.bench.result import WorkloadResult


class Plot(NamedTuple):
    title: str
    svg: str


class AxisPlots(NamedTuple):
    """Curves over one number; none where the record has none."""

    axis: Axis
    plots: list[Plot]


def time_plot(key: str, title: str, results: Sequence[WorkloadResult], palette: Palette) -> Plot:
    rows = [
        Row(
            result.workload.name,
            [Dot(entry.system, entry.us, entry.is_right) for entry in result.timed],
            result.floor_us or None,
        )
        for result in results
    ]
    alt = f"{title}: microseconds of each system on {len(rows)} workloads, a dot for each; the table has them"
    return Plot("Time, and the floor as a line", dot_plot(f"time-{key}", alt, rows, "us", palette))


def share_plot(key: str, title: str, results: Sequence[WorkloadResult], palette: Palette) -> Plot:
    rows = [
        Row(
            result.workload.name,
            [Dot(entry.system, result.share_of_floor(entry), entry.is_right) for entry in result.timed],
        )
        for result in results
    ]
    alt = f"{title}: the share of the floor that each system reaches on {len(rows)} workloads"
    svg = dot_plot(f"share-{key}", alt, rows, "floor / time", palette, is_share=True)
    return Plot("Share of the floor", svg)


def floor_plot(families: Sequence[FamilyResults], palette: Palette) -> str | None:
    """A row for each family and contender, a dot for each workload."""
    rows = []
    for family, results in families:
        ours = [
            Dot(result.ours.system, result.share_of_floor(result.ours), result.ours.is_right)
            for result in results
            if result.ours is not None
        ]
        peers = [
            Dot(result.best_peer.system, result.share_of_floor(result.best_peer))
            for result in results
            if result.best_peer is not None
        ]
        for what, dots in (("onewave", ours), ("the best peer of each", peers)):
            if dots:
                middle = statistics.median(dot.value for dot in dots)
                rows.append(Row(f"{family.title}: {what}, median {middle:.2g}", dots, middle))
    if not rows:
        return None
    alt = (
        "Share of the floor by family of workloads, of onewave and of the best peers: a dot for each workload"
    )
    return dot_plot("floors", alt, rows, "floor / time", palette, is_share=True)


def roofline(results: Sequence[WorkloadResult], palette: Palette) -> str | None:
    if not any(result.timed for result in results):
        return None
    alt = "Roofline: TFLOP/s over FLOP per byte of onewave and of the best peer on each workload, below the ceilings"
    return roofline_plot("roofline", alt, results, palette)


def scaling_plots(series: Sequence[Series], palette: Palette) -> list[AxisPlots]:
    sections = []
    for axis in AXES:
        plots = []
        for i, curve in enumerate(curve for curve in series if curve.axis == axis):
            alt = f"{axis.title}: microseconds and share of the floor of each system; {curve.title}"
            plots.append(Plot(curve.title, scaling_plot(f"{axis.key}-{i}", alt, curve, palette)))
        sections.append(AxisPlots(axis, plots))
    return sections


def plan_plot(results: Sequence[WorkloadResult], palette: Palette) -> str | None:
    rows = []
    for system in palette.looks:
        dots = [
            Dot(system, statistics.median(entry.plan_us))
            for result in results
            for entry in result.timed
            if entry.system == system and entry.plan_us
        ]
        if dots:
            middle = statistics.median(dot.value for dot in dots)
            rows.append(Row(f"{system}, median {middle:.0f} us", dots, middle))
    if not rows:
        return None
    alt = "Microseconds until plan() returns, by system: a dot for each workload"
    return dot_plot("plans", alt, rows, "us until plan() returns", palette, has_legend=False)
