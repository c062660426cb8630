"""FlashAttention-3, from a library of torch operators as vLLM's wheel has it (vllm_flash_attn/_vllm_fa3_C.abi3.so)."""

import math
from pathlib import Path
from typing import Any

import torch

from onewave.bench.peers.split import TwoStreams, by_kind
from onewave.bench.system import Prepare, Unsupported
from onewave.bench.tensors import BatchTensors
from onewave.workspace import FP8

# SMs that the prefill part leaves to the decodes on the other stream.
SM_MARGINS = (16, 33, 44, 66)
# Arguments of the operator that a plain paged cache leaves empty; none has a default.
UNUSED = (
    *("k_new", "v_new", "q_v", "kv_batch_idx", "rotary_cos", "rotary_sin", "seqlens_rotary"),
    *("s_aux", "cp_tot_seqused_k"),
)
DESCALES = ("q_descale", "k_descale", "v_descale")


class FlashAttention3:
    """One launch for the batch (and the library's own kernel that combines splits)."""

    def __init__(self, tensors: BatchTensors, operators: Any, sm_margin: int) -> None:
        workload = tensors.workload
        if workload.kv_dtype != workload.dtype:
            raise Unsupported("needs keys and values of the queries' type")
        self._operators = operators
        self._schedule: torch.Tensor | None = None
        self._out = torch.full_like(tensors.q, torch.nan, dtype=workload.out_dtype)
        seqused_k = tensors.kv_len_arr.to(tensors.device)
        cu_seqlens_q = tensors.qo_indptr.to(tensors.device)
        max_seqlen_q = max(request.qo_len for request in workload.requests)
        max_seqlen_k = max(request.kv_len for request in workload.requests)
        # The arguments that both operators take.
        common: dict[str, Any] = {
            "max_seqlen_q": max_seqlen_q,
            "max_seqlen_k": max_seqlen_k,
            "seqused_k": seqused_k,
            "cu_seqlens_q": cu_seqlens_q,
            "cu_seqlens_k": None,
            "cu_seqlens_k_new": None,
            "seqused_q": None,
            "leftpad_k": None,
            "is_causal": workload.causal,
            "window_size_left": workload.window_left,
            "window_size_right": 0 if workload.causal and workload.window_left >= 0 else -1,
            "num_splits": 0,  # its own heuristic
            "pack_gqa": None,
            "sm_margin": sm_margin,
        }
        self._plan_args = common | {
            "batch_size": len(workload.requests),
            "num_heads": workload.num_qo_heads,
            "num_heads_k": workload.num_kv_heads,
            "headdim": workload.head_dim,
            "headdim_v": workload.head_dim,
            "qkv_dtype": workload.dtype,
            "page_size": workload.page_size,
            "max_seqlen_k_new": 0,
            "has_softcap": workload.logits_soft_cap > 0,
        }
        self._run_args = common | {
            **dict.fromkeys(UNUSED),
            **dict.fromkeys(DESCALES, _descale(tensors)),
            "q": tensors.q,
            "k": tensors.kv_cache[:, 0],
            "v": tensors.kv_cache[:, 1],
            "out": self._out,
            "page_table": _block_table(tensors),
            "softmax_scale": 1 / math.sqrt(workload.head_dim),
            "softcap": workload.logits_soft_cap,
            "is_rotary_interleaved": True,
            "cp_world_size": 1,
            "cp_rank": 0,
        }

    def plan(self) -> None:
        """Its scheduler's kernel, from lengths on the device."""
        self._schedule = self._operators.get_scheduler_metadata(**self._plan_args)

    def run(self) -> None:
        self._operators.fwd(**self._run_args, scheduler_metadata=self._schedule)

    def output(self) -> torch.Tensor:
        return self._out


def systems(library: Path | None) -> dict[str, Prepare]:
    """In one launch; in two; in two on two streams."""

    def with_margin(sm_margin: int) -> Prepare:
        return lambda tensors: FlashAttention3(tensors, _load(library), sm_margin)

    one_launch = with_margin(0)
    return {
        "fa3": one_launch,
        "fa3_split": by_kind(one_launch, one_launch, needs_both=True),
        **{
            f"fa3_streams{margin}": by_kind(one_launch, with_margin(margin), TwoStreams, needs_both=True)
            for margin in SM_MARGINS
        },
    }


def _load(library: Path | None) -> Any:
    """The namespace of the operators; loaded once."""
    namespace = torch.ops._vllm_fa3_C
    if not hasattr(namespace, "fwd"):
        if library is None:
            raise Unsupported("its library is not given: --fa3-library or ONEWAVE_FA3_LIBRARY")
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return namespace


def _descale(tensors: BatchTensors) -> torch.Tensor | None:
    """Of queries, keys and values alike, where they are fp8: 1 for each kv head of each request."""
    workload = tensors.workload
    if workload.dtype != FP8:
        return None
    return torch.ones(len(workload.requests), workload.num_kv_heads, device=tensors.device)


def _block_table(tensors: BatchTensors) -> torch.Tensor:
    """Page ids as [batch_size, most pages of a request], 0 beyond a request's own."""
    pages = [tensors.pages_of(i) for i in range(len(tensors.workload.requests))]
    return torch.nn.utils.rnn.pad_sequence(pages, batch_first=True)
