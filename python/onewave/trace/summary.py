"""What a run's profile comes to, in numbers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from onewave._prediction import KINDS
from onewave.trace.records import PHASES, Item, Run


@dataclass(frozen=True)
class Summary:
    """Of one run. Shares are of 1."""

    us: float  # from the first CTA's begin to the last one's end
    num_ctas: int  # of the launch; on a CPU threads
    num_working: int  # of these that had items
    num_items: int
    num_lost: int  # items that are not in the numbers: the buffer was full
    busy: dict[str, float]  # by kind of item: of all CTAs' time until the end of the run
    phases: dict[str, dict[str, float]]  # by kind and phase: of the items' time
    imbalance: float  # the last end of a CTA that had items over the mean
    measured_us: float  # from the first item's begin to the end
    predicted_us: float | None  # the same by the plan; None: of a CPU
    cta_error: float | None  # mean of |predicted - measured| end of a CTA, over measured_us

    @property
    def idle(self) -> float:
        return 1 - sum(self.busy.values())

    @property
    def prediction_error(self) -> float | None:
        """Predicted over measured, less 1: below 0 the run took longer."""
        return None if self.predicted_us is None else self.predicted_us / self.measured_us - 1


def summarise(run: Run) -> Summary:
    working = [cta for cta in run.ctas if cta.items or cta.num_lost]
    kinds = {kind: [item for item in run.items if item.kind == kind] for kind in KINDS}
    total_us = run.us * len(run.ctas)
    ends_us = [cta.end_us - run.first_item_us for cta in working]
    measured_us = max(ends_us, default=0.0)
    predicted_ends: dict[int, float] = {}
    for bar in run.prediction or ():
        predicted_ends[bar.cta] = max(predicted_ends.get(bar.cta, 0.0), bar.begin_us + bar.us)
    has_prediction = bool(predicted_ends) and measured_us > 0
    errors = [abs(predicted_ends.get(cta.index, 0.0) - us) for cta, us in zip(working, ends_us, strict=True)]
    return Summary(
        us=run.us,
        num_ctas=len(run.ctas),
        num_working=len(working),
        num_items=len(run.items),
        num_lost=run.num_lost,
        busy={
            kind: sum(item.us for item in items) / total_us if total_us > 0 else 0.0
            for kind, items in kinds.items()
        },
        phases={kind: _phases(items) for kind, items in kinds.items() if items},
        imbalance=measured_us / statistics.fmean(ends_us) if measured_us > 0 else 1.0,
        measured_us=measured_us,
        predicted_us=max(predicted_ends.values()) if has_prediction else None,
        cta_error=statistics.fmean(errors) / measured_us if has_prediction and errors else None,
    )


def _phases(items: list[Item]) -> dict[str, float]:
    total_us = sum(track.end_us - track.begin_us for item in items for track in item.tracks)
    if total_us == 0:
        return dict.fromkeys(PHASES, 0.0)
    return {
        phase: sum(track.phases_us[phase] for item in items for track in item.tracks) / total_us
        for phase in PHASES
    }


def summary_table(name: str, summary: Summary) -> Table:
    """For a terminal."""
    table = Table(title=name, box=SIMPLE_HEAD)
    table.add_column("")
    kinds = list(summary.phases)
    for kind in kinds:
        table.add_column(kind, justify="right")
    table.add_row("of the CTAs' time", *(f"{summary.busy[kind]:.1%}" for kind in kinds))
    for phase in PHASES:
        shares = [summary.phases[kind][phase] for kind in kinds]
        if any(shares):
            table.add_row(f"of that {phase}", *(f"{share:.1%}" for share in shares))
    rest = [1 - sum(summary.phases[kind].values()) for kind in kinds]
    table.add_row("of that the rest", *(f"{share:.1%}" for share in rest))
    caption = f"{summary.us:.1f} us, {summary.num_items} items on {summary.num_working} of {summary.num_ctas} CTAs, "
    caption += f"idle {summary.idle:.1%}, last end / mean {summary.imbalance:.3f}"
    if summary.prediction_error is not None:
        caption += f", from the first item {summary.measured_us:.1f} us, predicted {summary.predicted_us:.1f}"
        caption += f" ({summary.prediction_error:+.1%}"
        caption += f", a CTA's end {summary.cta_error:.1%} off)"
    if summary.num_lost:
        caption += f", {summary.num_lost} items more than the buffer has room for"
    table.caption = caption
    return table
