"""FlashInfer, where it imports. It compiles a module per dtype, head_dim and kernel at first use, a minute each."""

import functools
import importlib
from typing import Any

import torch

from onewave.bench.peers.split import by_kind
from onewave.bench.system import Prepare, Unsupported
from onewave.bench.tensors import BatchTensors
from onewave.workspace import FP8

WORKSPACE_BYTES = 512 << 20


class Batch:
    """BatchAttention: decodes and prefill in one launch. Lengths are on the device, where its plan() wants them."""

    def __init__(self, tensors: BatchTensors) -> None:
        self._tensors = tensors
        self._wrapper = _flashinfer(tensors).BatchAttention(kv_layout="NHD")
        self._qo_indptr = tensors.qo_indptr.to(tensors.device)
        self._kv_indptr = tensors.kv_indptr.to(tensors.device)
        self._kv_len_arr = tensors.kv_len_arr.to(tensors.device)
        self._out = torch.full_like(tensors.q, torch.nan)
        self._lse = torch.empty(tensors.q.shape[:2], dtype=torch.float32, device=tensors.device)

    def plan(self) -> None:
        workload = self._tensors.workload
        self._wrapper.plan(
            self._qo_indptr,
            self._kv_indptr,
            self._tensors.kv_indices,
            self._kv_len_arr,
            workload.num_qo_heads,
            workload.num_kv_heads,
            workload.head_dim,
            workload.head_dim,
            workload.page_size,
            causal=workload.causal,
            q_data_type=workload.dtype,
            kv_data_type=workload.kv_dtype,
        )

    def run(self) -> None:
        self._wrapper.run(self._tensors.q, self._tensors.kv_cache, self._out, self._lse)

    def output(self) -> torch.Tensor:
        return self._out


class _Wrapper:
    """Its decode or prefill wrapper over a paged cache; they differ in what plan() takes."""

    def __init__(self, tensors: BatchTensors, wrapper: Any, *plan_args: Any, **plan_options: Any) -> None:
        workload = tensors.workload
        self._tensors = tensors
        self._wrapper = wrapper
        shape = (workload.num_qo_heads, workload.num_kv_heads, workload.head_dim, workload.page_size)
        self._plan_args = (*plan_args, *shape)
        self._plan_options = plan_options | {
            "q_data_type": workload.dtype,
            "kv_data_type": workload.kv_dtype,
        }
        self._out = torch.full_like(tensors.q, torch.nan)

    def plan(self) -> None:
        self._wrapper.plan(*self._plan_args, **self._plan_options)

    def run(self) -> None:
        self._wrapper.run(self._tensors.q, self._tensors.kv_cache, out=self._out)

    def output(self) -> torch.Tensor:
        return self._out


def _decode(tensors: BatchTensors) -> _Wrapper:
    wrapper = _flashinfer(tensors).BatchDecodeWithPagedKVCacheWrapper(
        _workspace("decode", tensors.device), kv_layout="NHD", use_tensor_cores=True
    )
    return _Wrapper(tensors, wrapper, tensors.kv_indptr, tensors.kv_indices, _last_page_len(tensors))


def _prefill(tensors: BatchTensors) -> _Wrapper:
    # FlashAttention-3 there has one type for all.
    backend = "fa3" if tensors.workload.kv_dtype == tensors.workload.dtype else "fa2"
    wrapper = _flashinfer(tensors).BatchPrefillWithPagedKVCacheWrapper(
        _workspace("prefill", tensors.device), kv_layout="NHD", backend=backend
    )
    indices = (tensors.qo_indptr, tensors.kv_indptr, tensors.kv_indices, _last_page_len(tensors))
    return _Wrapper(tensors, wrapper, *indices, causal=tensors.workload.causal)


def systems() -> dict[str, Prepare]:
    """BatchAttention; the decode wrapper for decodes and the FlashAttention-3 prefill wrapper for the rest."""
    return {"fi_batch": Batch, "fi_split": by_kind(_decode, _prefill)}


def _flashinfer(tensors: BatchTensors) -> Any:
    if tensors.workload.window_left >= 0 or tensors.workload.logits_soft_cap > 0:
        raise Unsupported("is measured without windows and soft caps")
    if tensors.workload.dtype == FP8:
        raise Unsupported("is measured with queries of 16 bits")
    try:
        return importlib.import_module("flashinfer")
    except ImportError as error:
        raise Unsupported(f"flashinfer does not import: {error}") from error


@functools.cache
def _workspace(purpose: str, device: torch.device) -> torch.Tensor:
    """One for all workloads; the parts of a split each have their own."""
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _last_page_len(tensors: BatchTensors) -> torch.Tensor:
    return (tensors.kv_len_arr - 1) % tensors.workload.page_size + 1
