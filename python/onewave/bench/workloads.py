"""The named workloads. Random lengths come from fixed seeds, so that everybody measures the same batches."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from onewave.bench.scaling import SCALING, SMOKE_SCALING, scaling_workloads, smoke_scaling_workloads
from onewave.bench.workload import Request, Workload
from onewave.workspace import FP8

# For a machine without a GPU; not among the default workloads.
SMOKE = "smoke"


def lognormal_lens(
    seed: int, count: int, median: int, sigma: float, shortest: int = 128, longest: int = 60000
) -> list[int]:
    lens = random.Random(seed)
    draws = (int(lens.lognormvariate(0.0, sigma) * median) for _ in range(count))
    return [min(max(draw, shortest), longest) for draw in draws]


def _uniform(count: int, kv_len: int, qo_len: int = 1) -> tuple[Request, ...]:
    return (Request(kv_len, qo_len),) * count


def _decodes(lens: Sequence[int]) -> tuple[Request, ...]:
    return tuple(Request(kv_len, 1) for kv_len in lens)


# FlashInfer's own benchmark of mixed batches: 128 decodes and the second half of a prompt.
_HYBRID = (*_uniform(128, 8192), Request(8192, 4096))
_VERIFIED = lognormal_lens(2, 80, 3000, 0.9)

_MIXED = [
    Workload("fi_hybrid_qwen8b_p1", _HYBRID, page_size=1),
    Workload("fi_hybrid_llama70b_p1", _HYBRID, num_qo_heads=64, page_size=1),
    Workload("fi_hybrid_qwenmoe_d64_p1", _HYBRID, num_qo_heads=64, num_kv_heads=4, head_dim=64, page_size=1),
    Workload("hybrid_qwen7b_p16", _HYBRID, num_qo_heads=28, num_kv_heads=4),
    Workload(
        "lognormal_b64_chunk2k",
        (*_decodes(lognormal_lens(0, 64, 6000, 0.9)), Request(12000, 2048)),
        lens_seed=0,
    ),
    Workload(
        "lognormal_b160_chunk512",
        (*_decodes(lognormal_lens(1, 160, 2500, 0.9)), Request(6000, 512)),
        num_qo_heads=28,
        num_kv_heads=4,
        lens_seed=1,
    ),
    Workload(
        "spec_b48_q5_decode_b32",
        (*(Request(kv_len, 5) for kv_len in _VERIFIED[:48]), *_decodes(_VERIFIED[48:])),
        num_qo_heads=40,
        lens_seed=2,
    ),
    Workload(
        "short_b24_prompt256",
        (*_decodes(lognormal_lens(3, 24, 700, 0.9)), Request(256, 256)),
        lens_seed=3,
    ),
]

_PREFILL = [
    Workload("prefill_1x8k", _uniform(1, 8192, 8192)),
    Workload("prefill_1x8k_p1", _uniform(1, 8192, 8192), page_size=1),
    Workload("prefill_1x8k_p64", _uniform(1, 8192, 8192), page_size=64),
    Workload("prefill_1x8k_d64", _uniform(1, 8192, 8192), num_qo_heads=64, head_dim=64),
    Workload("prefill_1x8k_d96", _uniform(1, 8192, 8192), head_dim=96),
    Workload("prefill_1x8k_d192", _uniform(1, 8192, 8192), num_qo_heads=16, head_dim=192),
    Workload("prefill_1x8k_d256", _uniform(1, 8192, 8192), num_qo_heads=16, head_dim=256),
    Workload("prefill_1x8k_d256_p1", _uniform(1, 8192, 8192), num_qo_heads=16, head_dim=256, page_size=1),
    Workload("prefill_8x2k", _uniform(8, 2048, 2048)),
    Workload(
        "prefill_ragged_b24",
        tuple(Request(length, length) for length in lognormal_lens(0, 24, 1500, 1.2, 16, 12000)),
        lens_seed=0,
    ),
    Workload("prefill_1x8k_window1k", _uniform(1, 8192, 8192), window_left=1023),
    Workload(
        "prefill_1x8k_d256_cap50",
        _uniform(1, 8192, 8192),
        num_qo_heads=16,
        head_dim=256,
        logits_soft_cap=50.0,
    ),
    # The chunk's own keys come after the cached ones.
    Workload("chunk_2k_on_32k", _uniform(1, 32768 + 2048, 2048)),
    Workload("full_2x4k", _uniform(2, 4096, 4096), causal=False),
]

_DECODE = [
    Workload("decode_uniform_b128_8k", _uniform(128, 8192)),
    Workload("decode_uniform_b128_8k_p1", _uniform(128, 8192), page_size=1),
    Workload("decode_b16_4k", _uniform(16, 4096)),
    Workload("decode_b1_128k", _uniform(1, 131072)),
    Workload("decode_lognormal_b64", _decodes(lognormal_lens(0, 64, 3000, 1.3, 64, 100000)), lens_seed=0),
    *(Workload(f"decode_b{count}_8k", _uniform(count, 8192)) for count in (20, 33, 34, 40, 48, 67, 100)),
    Workload("decode_b64_8k_d96", _uniform(64, 8192), head_dim=96),
    Workload("decode_b64_8k_d256", _uniform(64, 8192), num_qo_heads=16, num_kv_heads=4, head_dim=256),
    Workload(
        "decode_b64_8k_d256_p1",
        _uniform(64, 8192),
        num_qo_heads=16,
        num_kv_heads=4,
        head_dim=256,
        page_size=1,
    ),
    # A window of keys of a long request, and a request of as many.
    Workload("decode_b128_32k_window1k", _uniform(128, 32768), window_left=1023),
    Workload("decode_b128_1k", _uniform(128, 1024)),
    # 512 tokens of their own behind a prefix that all share, in the same pages and each in its own.
    Workload("decode_b64_prefix16k", _uniform(64, 16384 + 512), prefix_len=16384),
    Workload("decode_b64_prefix16k_p1", _uniform(64, 16384 + 512), prefix_len=16384, page_size=1),
    Workload("decode_b64_17k", _uniform(64, 16384 + 512)),
    Workload("decode_b16_prefix16k", _uniform(16, 16384 + 512), prefix_len=16384),
    Workload("decode_b64_prefix2k", _uniform(64, 2048 + 512), prefix_len=2048),
    Workload("spec_b64_q4_prefix16k", _uniform(64, 16384 + 512, 4), prefix_len=16384),
    Workload("spec_b64_q4_4k", _uniform(64, 4096, 4)),
    Workload("spec_b64_q16_4k", _uniform(64, 4096, 16)),
    Workload("decode_mha_b32_4k", _uniform(32, 4096), num_kv_heads=32),
    Workload("decode_b1_1k_graph", _uniform(1, 1024), num_graph_nodes=50),
    Workload("decode_33ctas_p16", _uniform(33, 8192), num_ctas=33),
    Workload("decode_33ctas_p1", _uniform(33, 8192), page_size=1, num_ctas=33),
]

# Measured with a cache of fp8 too, beside queries of bf16 and of fp8.
_FP8_NAMES = (
    *("hybrid_qwen7b_p16", "prefill_1x8k", "prefill_1x8k_p1", "prefill_1x8k_d64", "prefill_1x8k_d256"),
    *("chunk_2k_on_32k", "decode_uniform_b128_8k", "decode_b16_4k", "spec_b64_q16_4k"),
)


def _in_fp8(workload: Workload) -> list[Workload]:
    fp8_cache = replace(workload, name=f"{workload.name}_fp8", kv_dtype=FP8)
    return [fp8_cache, replace(fp8_cache, name=f"{fp8_cache.name}q", dtype=FP8)]


def _halves(workload: Workload) -> list[Workload]:
    """A mixed batch's decodes alone and the rest alone."""
    return [
        workload.subset(workload.decodes, f"{workload.name}/decode"),
        workload.subset(workload.others, f"{workload.name}/rest"),
    ]


WORKLOADS = {
    workload.name: workload
    for workload in [
        *_MIXED,
        *_PREFILL,
        *_DECODE,
        *(row for w in (*_MIXED, *_PREFILL, *_DECODE) if w.name in _FP8_NAMES for row in _in_fp8(w)),
        *(half for mixed in _MIXED for half in _halves(mixed)),
        *scaling_workloads(),
        *smoke_scaling_workloads(),
        Workload(
            SMOKE, (*_decodes(lognormal_lens(4, 6, 300, 0.9, 16, 2048)), Request(400, 100)), lens_seed=4
        ),
    ]
}


def default_workloads() -> list[Workload]:
    """All but the halves of mixed batches, the families of one number, and the one for machines without a GPU."""
    return [w for w in WORKLOADS.values() if "/" not in w.name and w.name != SMOKE]


def report_workloads(device_type: str) -> list[Workload]:
    """What a page of all sections is made from: minutes on a GPU; on a CPU seconds, since times there say little."""
    if device_type == "cuda":
        return default_workloads() + select_workloads([f"{SCALING}*"])
    return select_workloads([SMOKE, f"{SMOKE_SCALING}*"])


def select_workloads(patterns: Sequence[str]) -> list[Workload]:
    """Those that a name or glob matches, in the order of the list. A glob without a slash matches no name
    that has one.

    Raises ValueError for a pattern that matches nothing.
    """

    def matcher(pattern: str) -> Callable[[str], bool]:
        return lambda name: fnmatchcase(name, pattern) and ("/" in pattern or "/" not in name)

    matchers = {pattern: matcher(pattern) for pattern in patterns}
    for pattern, matches in matchers.items():
        if not any(map(matches, WORKLOADS)):
            raise ValueError(f"workload {pattern!r} matches no name of --list")
    return [w for w in WORKLOADS.values() if any(matches(w.name) for matches in matchers.values())]
