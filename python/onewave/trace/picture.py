"""A run and what the plan had predicted of it, one above the other: CTAs over time."""

from __future__ import annotations

from pathlib import Path

from onewave._gantt import INCHES_PER_CTA, WIDTH_INCHES, draw_bars
from onewave._matplotlib import import_pyplot, save
from onewave._prediction import Bar
from onewave.trace.records import Run


def draw_run(path: Path, run: Run) -> None:
    """The file's suffix says which format: png, svg, pdf."""
    pyplot = import_pyplot("a picture of a trace")
    first_us = run.first_item_us
    measured = [Bar(item.cta, item.kind, item.begin_us - first_us, item.us) for item in run.items]
    panels = [("measured", measured)]
    if run.prediction is not None:
        panels.append(("predicted", list(run.prediction)))
    height = 2 + max(1.5, INCHES_PER_CTA * len(run.ctas)) * len(panels)
    figure, all_axes = pyplot.subplots(
        len(panels), 1, figsize=(WIDTH_INCHES, height), sharex=True, squeeze=False, layout="constrained"
    )
    for axes, (title, bars) in zip(all_axes[:, 0], panels, strict=True):
        draw_bars(axes, bars)
        end_us = max((bar.begin_us + bar.us for bar in bars), default=0.0)
        axes.axvline(end_us, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(f"{run.name}, {title}: {end_us:.1f} us", fontsize=9)
        axes.set_ylabel("CTA")
        axes.yaxis.get_major_locator().set_params(integer=True)
    all_axes[-1, 0].set_xlabel("us since the first item began")
    handles = {
        label: handle
        for axes in all_axes[:, 0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    save(figure, path)
    pyplot.close(figure)
