"""A picture of a benchmark: the share of the floor that each system reaches on each workload, where it is right."""

from pathlib import Path

from onewave._matplotlib import import_pyplot, save
from onewave.bench.result import WorkloadResult

INCHES_PER_BAR = 0.16
WIDTH_INCHES = 9


def check_matplotlib() -> None:
    """Before anything is measured."""
    import_pyplot("--plot")


def write_plot(path: Path, results: list[WorkloadResult], title: str) -> None:
    """The file's suffix says which format: png, svg, pdf."""
    names = list(dict.fromkeys(entry.system for result in results for entry in result.timed))
    pyplot = import_pyplot("--plot")
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
    save(figure, path)
    pyplot.close(figure)
