"""Workloads that a section of the page shows side by side."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from onewave.bench.result import WorkloadResult
from onewave.bench.scaling import SCALING, SMOKE_SCALING
from onewave.bench.workload import Workload
from onewave.workspace import FP8

# Queries of a request that is verified and not prefilled.
MAX_VERIFIED_LEN = 32
# Of the family that has curves in place of dots.
SCALING_KEY = "scaling"


class Family(NamedTuple):
    key: str  # of the section's anchor
    title: str
    what: str
    is_member: Callable[[Workload], bool]


class FamilyResults(NamedTuple):
    family: Family
    results: list[WorkloadResult]


def _is_decoded(workload: Workload) -> bool:
    """Few queries of each request, behind many keys."""
    return all(
        request.qo_len <= MAX_VERIFIED_LEN and request.qo_len < request.kv_len
        for request in workload.requests
    )


# A workload belongs to the first that takes it.
FAMILIES = (
    Family(
        SCALING_KEY,
        "Scaling",
        "Batches that differ in one number.",
        lambda workload: workload.name.startswith((SCALING, SMOKE_SCALING)),
    ),
    Family(
        "halves",
        "Halves of mixed batches",
        "The decodes of a mixed batch alone, and the rest alone.",
        lambda workload: "/" in workload.name,
    ),
    Family(
        "fp8",
        "fp8",
        "Caches of fp8, with queries of 16 bits and of fp8.",
        lambda workload: workload.kv_dtype == FP8,
    ),
    Family(
        "mixed",
        "Mixed batches",
        "Decodes beside prompts, chunks of prompts or verification: one serving step.",
        lambda workload: bool(workload.decodes and workload.others),
    ),
    Family("decode", "Decode and verification", "Few queries a request, behind many keys.", _is_decoded),
    Family("prefill", "Prefill and chunks", "Whole prompts, or parts of one.", lambda _: True),
)
# As the page has them.
ORDER = ("mixed", "prefill", "decode", "fp8", "halves", SCALING_KEY)


def by_family(results: Iterable[WorkloadResult]) -> list[FamilyResults]:
    """Those that have a workload, each workload in one."""
    members: dict[str, list[WorkloadResult]] = {key: [] for key in ORDER}
    for result in results:
        family = next(family for family in FAMILIES if family.is_member(result.workload))
        members[family.key].append(result)
    by_key = {family.key: family for family in FAMILIES}
    return [FamilyResults(by_key[key], found) for key, found in members.items() if found]
