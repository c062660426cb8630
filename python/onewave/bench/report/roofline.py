"""The roofline: what workloads reach, against what memory and tensor cores give."""

from collections.abc import Sequence
from typing import Any

import torch

from onewave.bench.ceilings import Ceilings
from onewave.bench.report.canvas import (
    SMALL,
    add_legend,
    make_logarithmic,
    new_figure,
    plot_dot,
    present,
    style_axes,
)
from onewave.bench.report.palette import INK, MUTED, Palette
from onewave.bench.report.svg import inline_svg
from onewave.bench.result import Result, WorkloadResult
from onewave.workspace import FP8

HEIGHT = 300  # points


def contenders(result: WorkloadResult) -> list[Result]:
    """Ours where it is right, and the best peer."""
    ours = [result.ours] if result.ours is not None and result.ours.is_right else []
    return ours + ([result.best_peer] if result.best_peer is not None else [])


def roofline_plot(name: str, alt: str, results: Sequence[WorkloadResult], palette: Palette) -> str:
    """SVG. A dot for ours and for the best peer of each workload. `results`: not empty."""
    ceilings = results[0].ceilings
    shown = [(result, entry) for result in results for entry in contenders(result)]
    systems = present(palette, (entry.system for _, entry in shown))
    with new_figure(HEIGHT, systems) as figure:
        axes = figure.subplots()
        style_axes(axes, has_grid=True)
        ridge = ceilings.flop_per_second / ceilings.bytes_per_second
        intensities = [intensity(result) for result in results]
        low, high = min(intensities) / 2, max(*intensities, 4 * ridge) * 2
        peaks = {"bf16": ceilings.flop_per_second}
        if any(result.workload.dtype == FP8 for result in results):
            peaks["fp8"] = ceilings.flop_per_second * torch.bfloat16.itemsize / FP8.itemsize
        _plot_roofs(axes, ceilings, peaks, low, high)
        for result, entry in shown:
            plot_dot(axes, intensity(result), result.tflop_per_s(entry), entry.system, palette)
        axes.set_xlim(low, high)
        make_logarithmic(axes, "x")
        make_logarithmic(axes, "y")
        axes.set_xlabel("FLOP / byte")
        axes.set_ylabel("TFLOP/s")
        add_legend(figure, axes, systems, palette)
        return inline_svg(figure, name, alt, palette.replacements())


def intensity(result: WorkloadResult) -> float:
    """FLOP per byte that must be moved; at least a millionth, since an axis of logarithms has no 0."""
    workload = result.workload
    return max(workload.num_flop / max(workload.num_bytes, 1), 1e-6)


def _plot_roofs(axes: Any, ceilings: Ceilings, peaks: dict[str, float], low: float, high: float) -> None:
    style = {"color": INK.light, "linewidth": 1.3, "zorder": 1}
    highest_ridge = max(peaks.values()) / ceilings.bytes_per_second
    slope = [(x, x * ceilings.bytes_per_second * 1e-12) for x in (low, highest_ridge)]
    axes.plot(*zip(*slope, strict=True), **style)
    middle = (low * highest_ridge) ** 0.5
    _label(axes, f"{ceilings.bytes_per_second * 1e-12:.2f} TB/s", middle, slope[0][1] * middle / low)
    for dtype, flop_per_second in peaks.items():
        peak = flop_per_second * 1e-12
        axes.plot([flop_per_second / ceilings.bytes_per_second, high], [peak, peak], **style)
        _label(axes, f"{peak:.0f} TFLOP/s, {dtype}", flop_per_second / ceilings.bytes_per_second, peak)


def _label(axes: Any, text: str, x: float, y: float) -> None:
    """Left of a roof, where nothing is."""
    axes.annotate(
        text,
        (x, y),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=MUTED.light,
        fontsize=SMALL,
    )
