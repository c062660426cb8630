"""Where the time of profiled runs went: BatchAttention.trace()."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from onewave._core import version
from onewave.trace.chrome import write_chrome
from onewave.trace.picture import draw_run
from onewave.trace.records import PHASES, Cta, Item, Run, Track
from onewave.trace.summary import Summary, summarise, summary_table

__all__ = ["PHASES", "Cta", "Item", "Run", "Summary", "Trace", "Track"]


class Trace:
    """The profiled runs of one plan, on the host.

    runs: in the order of their slots: CTA by CTA its items, what each spent its time on, and what the plan expected, in
        microseconds.
    num_unrecorded: runs for which there was no slot, since the plan or when they were captured.
    """

    def __init__(self, runs: Sequence[Run], num_unrecorded: int = 0) -> None:
        self.runs = list(runs)
        self.num_unrecorded = num_unrecorded

    def summary(self, run: int = 0) -> Summary:
        """Shares of busy CTAs by kind of item and of waits by cause, imbalance, and the prediction's error."""
        return summarise(self._run(run))

    def table(self, run: int = 0) -> Table:
        """The summary, for `rich.print`."""
        return summary_table(self._run(run).name, self.summary(run))

    def write(self, path: str | os.PathLike[str], runs: Sequence[int] | None = None) -> None:
        """JSON of some runs, or of all, and of their predictions, for https://ui.perfetto.dev or chrome://tracing: some
        250 bytes for each phase of each item and warpgroup."""
        chosen = self.runs if runs is None else [self._run(run) for run in runs]
        write_chrome(Path(path), chosen, {"onewave": version})

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
