"""Records of plans and profiles without numpy, which the package itself does not need."""

import struct
from typing import Any

from onewave import _core

# Of a record: name, struct-module character and offset of each.
Fields = list[tuple[str, str, int]]


def header_of(plan: bytes) -> dict[str, Any]:
    """The fields of PlanHeader, by name."""
    return record_of(plan, _core.plan_layout()["PlanHeader"][1], 0)


def ctas_of(plan: bytes) -> list[dict[str, Any]]:
    """The fields of each CtaRecord."""
    header = header_of(plan)
    size, fields = _core.plan_layout()["CtaRecord"]
    begin = header["ctas_offset"]
    return [record_of(plan, fields, begin + cta * size) for cta in range(header["num_ctas"])]


def items_of(plan: bytes) -> list[dict[str, Any]]:
    """The fields of each WorkItem."""
    header = header_of(plan)
    size, fields = _core.plan_layout()["WorkItem"]
    begin = header["items_offset"]
    return [record_of(plan, fields, begin + item * size) for item in range(header["num_items"])]


def record_of(data: bytes, fields: Fields, begin: int) -> dict[str, Any]:
    """The fields of the record that begins at byte `begin`, by name."""
    return {name: struct.unpack_from("<" + code, data, begin + offset)[0] for name, code, offset in fields}
