"""Plans as numpy records: for tests, tables and drawings. The layout comes from the C++ structs themselves."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from onewave import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _import_numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError("onewave.plan_format reads plans with numpy: pip install numpy") from error
    return numpy


@functools.cache
def record_dtypes() -> dict[str, np.dtype[Any]]:
    """The numpy dtype of each record of cpp/include/onewave/plan_format.h, by its C++ name."""
    numpy = _import_numpy()
    return {
        record: numpy.dtype(
            {
                "names": [name for name, _, _ in fields],
                "formats": ["<" + code for _, code, _ in fields],
                "offsets": [offset for _, _, offset in fields],
                "itemsize": size,
            }
        )
        for record, (size, fields) in _core.plan_layout().items()
    }


class Plan:
    """A copy of a plan's bytes and its sections as structured arrays, which may be altered in place.

    The number of records of a section is fixed; `to_bytes` gives the altered plan.
    """

    header: np.void
    ctas: NDArray[Any]
    items: NDArray[Any]
    split_tiles: NDArray[Any]
    partial_rows: NDArray[Any]  # of requests that share prefixes
    row_members: NDArray[Any]  # int32, of their prefixes
    item_bounds: NDArray[Any]  # empty where the lengths are no upper bounds
    mask_tiles: NDArray[Any]  # of custom masks
    mask_rows: NDArray[Any]  # [rows, 4] uint32
    counters: NDArray[Any]

    def __init__(self, data: bytes) -> None:
        numpy = _import_numpy()
        dtypes = record_dtypes()
        self._bytes: NDArray[Any] = numpy.frombuffer(data, dtype=numpy.uint8).copy()
        self.header = self._bytes[: dtypes["PlanHeader"].itemsize].view(dtypes["PlanHeader"])[0]

        def section(dtype: np.dtype[Any], offset_field: str, count: str | int) -> NDArray[Any]:
            offset = int(self.header[offset_field])
            size = int(self.header[count] if isinstance(count, str) else count) * dtype.itemsize
            return self._bytes[offset : offset + size].view(dtype)

        self.ctas = section(dtypes["CtaRecord"], "ctas_offset", "num_ctas")
        self.items = section(dtypes["WorkItem"], "items_offset", "num_items")
        self.split_tiles = section(dtypes["SplitTile"], "split_tiles_offset", "num_split_tiles")
        num_bounds = self.header["num_items"] if self.header["item_bounds_offset"] else 0
        self.item_bounds = section(dtypes["ItemBounds"], "item_bounds_offset", int(num_bounds))
        self.counters = section(
            numpy.dtype("<u4"), "counters_offset", 1 + int(self.header["num_split_tiles"])
        )
        # Their sizes are where the next section begins, to its alignment.
        bounds = int(self.header["item_bounds_offset"] or self.header["mask_tiles_offset"])
        partials, members = (int(self.header[f"{name}_offset"]) for name in ("partial_rows", "row_members"))
        self.partial_rows = self._bytes[partials:members].view(dtypes["PartialRows"])
        self.row_members = self._bytes[members:bounds].view("<i4")
        tiles, rows, counters = (
            int(self.header[f"{name}_offset"]) for name in ("mask_tiles", "mask_rows", "counters")
        )
        self.mask_tiles = self._bytes[tiles:rows].view(dtypes["MaskTile"])
        self.mask_rows = self._bytes[rows:counters].view("<u4").reshape(-1, 4)

    def to_bytes(self) -> bytes:
        return self._bytes.tobytes()

    def narrow_items_of(self, cta: int) -> NDArray[Any]:
        """The narrow items of one CTA in the order it runs them."""
        items: NDArray[Any] = self.items[self.ctas[cta]["narrow_begin"] : self.ctas[cta]["narrow_end"]]
        return items

    @property
    def wide_items(self) -> NDArray[Any]:
        """In the order in which CTAs take them."""
        items: NDArray[Any] = self.items[self.header["wide_begin"] :]
        return items

    def summary(self) -> dict[str, int | float]:
        """What the planner decided, in numbers: counts, and predicted times in microseconds."""
        makespan_us = float(self.ctas["predicted_us"].max())
        mean_us = float(self.ctas["predicted_us"].mean(dtype=float))
        return {
            "num_ctas": len(self.ctas),
            "num_narrow_items": int(self.header["wide_begin"]),
            "num_wide_items": len(self.wide_items),
            "num_split_tiles": len(self.split_tiles),
            "num_splits": int(self.split_tiles["num_splits"].sum()),
            "predicted_makespan_us": makespan_us,
            "predicted_mean_us": mean_us,
            "makespan_over_mean": makespan_us / mean_us if mean_us > 0 else 1.0,
            "num_bytes": int(self.header["num_bytes"]),
        }
