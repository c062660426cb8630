"""Where the time of profiled runs went: BatchAttention.trace()."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from onewave._core import version
from onewave.trace.chrome import write_chrome
from onewave.trace.picture import draw_run
from onewave.trace.records import PHASES, WAITS, Cta, Item, Run, Track
from onewave.trace.summary import Summary, summarise, summary_table

__all__ = ["PHASES", "WAITS", "Cta", "Item", "Run", "Summary", "Trace", "Track"]


class Trace:
    """The profiled runs of one plan, on the host.

    runs: in the order of their slots: CTA by CTA its items, what each spent its time on, and what the plan expected, in
        microseconds.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)

    def summary(self, run: int = 0) -> Summary:
        """Shares of busy CTAs by kind of item and of waits by cause, imbalance, and the prediction's error."""
        return summarise(self._run(run))

    def table(self, run: int = 0) -> Table:
        """The summary, for `rich.print`."""
        return summary_table(self._run(run).name, self.summary(run))

    def write(self, path: str | os.PathLike[str]) -> None:
        """JSON of all runs and predictions, for https://ui.perfetto.dev or chrome://tracing."""
        write_chrome(Path(path), self.runs, {"onewave": version})

    def draw(self, path: str | os.PathLike[str], run: int = 0) -> None:
        """A picture of a run, all SMs over time, above the plan's prediction: png, svg or pdf, by the suffix.

        Raises ImportError without matplotlib, which `onewave[bench]` has.
        """
        draw_run(Path(path), self._run(run))

    def _run(self, index: int) -> Run:
        if not self.runs:
            raise ValueError(
                "the trace has no run; call run() after plan(use_profiler=True), or replay its graph"
            )
        return self.runs[index]
