"""A plan's records without numpy, which the package itself does not need."""

import struct
from typing import Any

from onewave import _core


def header_of(plan: bytes) -> dict[str, Any]:
    """The fields of PlanHeader, by name."""
    return _record(plan, "PlanHeader", 0)


def ctas_of(plan: bytes) -> list[dict[str, Any]]:
    """The fields of each CtaRecord."""
    header = header_of(plan)
    size, _ = _core.plan_layout()["CtaRecord"]
    begin = header["ctas_offset"]
    return [_record(plan, "CtaRecord", begin + cta * size) for cta in range(header["num_ctas"])]


def items_of(plan: bytes) -> list[dict[str, Any]]:
    """The fields of each WorkItem."""
    header = header_of(plan)
    size, _ = _core.plan_layout()["WorkItem"]
    begin = header["items_offset"]
    return [_record(plan, "WorkItem", begin + item * size) for item in range(header["num_items"])]


def _record(plan: bytes, record: str, begin: int) -> dict[str, Any]:
    _, fields = _core.plan_layout()[record]
    return {name: struct.unpack_from("<" + code, plan, begin + offset)[0] for name, code, offset in fields}
