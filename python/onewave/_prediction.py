"""What the planner expects of a plan: when each CTA does what."""

import heapq
from typing import NamedTuple

import torch

from onewave import _core
from onewave._plan_records import ctas_of, header_of, items_of
from onewave._prefixes import prefix_arguments


class Bar(NamedTuple):
    """An item in time."""

    cta: int
    kind: str  # of KINDS
    begin_us: float
    us: float


KINDS = ("narrow", "narrow, split", "wide", "wide, split")


def kind_of(is_wide: bool, is_split: bool) -> str:
    """Of KINDS."""
    return KINDS[2 * is_wide + is_split]


def predict_bars(
    plan: bytes,
    shape: _core.AttentionShape,
    costs: _core.CostModel,
    qo_indptr: torch.Tensor,
    prefix_groups: torch.Tensor | None,
) -> list[Bar]:
    """Each CTA's narrow items, and the wide ones as the queue gives them out if the costs are right.

    qo_indptr, prefix_groups: of the batch, as the planner had them. The launch counts: nothing begins at 0.
    """
    header, items = header_of(plan), items_of(plan)
    item_us = _core.predict_items(
        plan, shape, qo_indptr.numel() - 1, qo_indptr.data_ptr(), costs, **prefix_arguments(prefix_groups)
    )

    def bar(cta: int, i: int, begin_us: float) -> Bar:
        kind = kind_of(i >= header["wide_begin"], items[i]["split_tile"] >= 0)
        return Bar(cta, kind, begin_us, item_us[i])

    bars = []
    ends_us = []
    for index, cta in enumerate(ctas_of(plan)):
        end_us = costs.launch_us
        for i in range(cta["narrow_begin"], cta["narrow_end"]):
            bars.append(bar(index, i, end_us))
            end_us += item_us[i]
        ends_us.append((end_us, index))
    heapq.heapify(ends_us)
    for i in range(header["wide_begin"], header["num_items"]):
        end_us, index = ends_us[0]
        bars.append(bar(index, i, end_us))
        heapq.heapreplace(ends_us, (end_us + item_us[i], index))
    return bars
