"""A picture of a benchmark: the share of the floor that each system reaches on each workload, where it is right."""

import importlib
from pathlib import Path
from typing import Any

from onewave.bench.result import WorkloadResult

INCHES_PER_BAR = 0.16
WIDTH_INCHES = 9


class MissingMatplotlib(ImportError):
    """It comes with the extra `bench`."""


def check_matplotlib() -> None:
    """Before anything is measured."""
    _matplotlib()


def write_plot(path: Path, results: list[WorkloadResult], title: str) -> None:
    """The file's suffix says which format: png, svg, pdf."""
    names = list(dict.fromkeys(entry.system for result in results for entry in result.timed))
    pyplot = _matplotlib()
    num_bars = len(results) * (len(names) + 1)
    figure, axes = pyplot.subplots(
        figsize=(WIDTH_INCHES, 1.5 + INCHES_PER_BAR * num_bars), layout="constrained"
    )
    for i, name in enumerate(names):
        places, shares = [], []
        for row, result in enumerate(results):
            for entry in result.timed:
                if entry.system == name and entry.is_right:
                    places.append(row * (len(names) + 1) + i)
                    shares.append(result.share_of_floor(entry))
        bars = axes.barh(places, shares, height=0.9, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    middle = (len(names) - 1) / 2
    ticks = [row * (len(names) + 1) + middle for row in range(len(results))]
    axes.set_yticks(ticks, [result.workload.name for result in results])
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("floor / time (1: memory or tensor cores alone)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _matplotlib() -> Any:
    """Its pyplot, drawing to files."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingMatplotlib("--plot needs matplotlib: python3 -m pip install 'onewave[bench]'") from error
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")
