"""What a measured system is, and onewave as one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

import onewave
from onewave.bench.tensors import BatchTensors


class Unsupported(Exception):
    """A system that cannot do a workload, or is not there; the text says why."""


class System(Protocol):
    """A way to compute a workload, prepared: what an engine does once per model is done."""

    def plan(self) -> None:
        """What an engine does once a step."""

    def run(self) -> None:
        """What an engine does once a layer. Launches; what it launched is timed."""

    def output(self) -> torch.Tensor:
        """Of the last run, [total_qo_len, num_qo_heads, head_dim]. May launch; not timed."""


# Raises Unsupported, or whatever the system's library raises.
Prepare = Callable[[BatchTensors], System]


class Onewave:
    """This package, called as an engine calls it: lengths on the host, page table on the device."""

    def __init__(
        self,
        tensors: BatchTensors,
        calibration: Path | None = None,
        split_policy: str = "balanced",
        reads_prefixes_once: bool = True,
        uses_profiler: bool = False,
        **limits: Any,
    ) -> None:
        """`limits`: of the BatchAttention, further ones."""
        workload = tensors.workload
        self._tensors = tensors
        self._uses_profiler = uses_profiler
        self._prefix_groups = workload.prefix_groups if reads_prefixes_once else []
        self.attention = onewave.BatchAttention(
            device=tensors.device,
            # With fixed splits the limit decides how finely requests are cut: an engine's, not the default.
            max_batch_size=max(2048 if split_policy == "balanced" else 256, len(workload.requests)),
            max_total_qo_len=max(65536, workload.total_qo_len),
            num_ctas=workload.num_ctas,
            split_policy=split_policy,
            calibration=calibration,
            **limits,
        )
        self._out = torch.full_like(tensors.q, torch.nan, dtype=workload.out_dtype)
        self._lse = torch.empty(tensors.q.shape[:2], dtype=torch.float32, device=tensors.device)

    def plan(self) -> None:
        tensors, workload = self._tensors, self._tensors.workload
        self.attention.plan(
            tensors.qo_indptr,
            tensors.kv_indptr,
            tensors.kv_indices,
            tensors.kv_len_arr,
            workload.num_qo_heads,
            workload.num_kv_heads,
            workload.head_dim,
            workload.head_dim,
            workload.page_size,
            causal=workload.causal,
            window_left=workload.window_left,
            logits_soft_cap=workload.logits_soft_cap,
            q_data_type=workload.dtype,
            kv_data_type=workload.kv_dtype,
            use_profiler=self._uses_profiler,
            prefix_groups=self._prefix_groups,
        )

    def run(self, **options: Any) -> None:
        self.attention.run(self._tensors.q, self._tensors.kv_cache, out=self._out, lse=self._lse, **options)

    def output(self) -> torch.Tensor:
        return self._out

    def plan_bytes(self) -> bytes:
        return self.attention.plan_bytes()


class ProfiledOnewave(Onewave):
    """With the profiler: what that costs. All runs write to one buffer."""

    def __init__(self, tensors: BatchTensors) -> None:
        super().__init__(tensors, uses_profiler=True, max_profiled_runs=1)
        size = self.attention.profiler_buffer_size()
        self._profile = torch.zeros(size, dtype=torch.uint8, device=tensors.device)

    def run(self, **options: Any) -> None:
        super().run(profiler_buffer=self._profile, **options)
