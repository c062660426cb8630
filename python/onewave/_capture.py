"""What CUDA graphs have baked in of the runs that they captured, and what a later plan may therefore not change."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from onewave._batch import Batch
from onewave._tensors import Shape


@dataclass
class Captured:
    """Of all graphs of one BatchAttention: the plan's shape and kernels, the most rows that run() was captured with, the
    fewest pages, and the windows for which it took the kernel that looks at no masks. A replay of one with fewer rows than
    its batch stops the kernel."""

    shape: Shape
    use_profiler: bool
    num_rows: int
    num_pages: int
    unmasked_windows: frozenset[int] = frozenset()

    def include(self, num_rows: int, num_pages: int) -> None:
        self.num_rows = max(self.num_rows, num_rows)
        self.num_pages = min(self.num_pages, num_pages)

    def check_shape(self, shape: Shape, use_profiler: bool) -> None:
        """Of a plan, before anything else of it is looked at."""
        if use_profiler is not self.use_profiler:
            raise RuntimeError(
                f"use_profiler is {use_profiler}; it must stay {self.use_profiler}, because run() was captured in a CUDA "
                "graph with it"
            )
        if shape == self.shape:
            return
        changed = [
            f"{field.name} is {getattr(shape, field.name)} and was {getattr(self.shape, field.name)}"
            for field in fields(Shape)
            if getattr(shape, field.name) != getattr(self.shape, field.name)
        ]
        raise RuntimeError(
            f"{', '.join(changed)}; it must stay, because run() was captured in a CUDA graph with it"
        )

    def check_batch(self, batch: Batch, sees_masks: tuple[bool, ...]) -> None:
        """A replay takes as many rows as the plan says, of tensors of the capture's size, and its kernel."""
        if any(sees_masks[window] for window in self.unmasked_windows):
            raise RuntimeError(
                "the plan has a window, a soft cap or a custom mask; it must have none, because run() was captured in a "
                "CUDA graph by a plan without, whose kernel would not see them"
            )
        if batch.total_qo_len > self.num_rows:
            raise ValueError(
                f"qo_indptr ends at {batch.total_qo_len} query tokens; it must be at most {self.num_rows}, the most rows "
                "of q, out and lse that run() was captured with in a CUDA graph"
            )
        if batch.max_page_id >= self.num_pages:
            raise ValueError(
                f"kv_indices has page id {batch.max_page_id}; it must be below {self.num_pages}, the pages of the kv_cache "
                "that run() was captured with in a CUDA graph"
            )


def is_capturing(device: torch.device) -> bool:
    """Whether the device's current stream is."""
    if device.type == "cpu":
        return False
    if torch.cuda.current_device() == device.index:
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
