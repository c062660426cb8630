"""Bad input gets one error that names the argument, what it was and what it must be, before anything is written."""

import math
from collections.abc import Callable
from typing import Any

import onewave
import pytest
import torch
from onewave import _core

PAGE_SIZE = 16
HEAD_DIM = 64
# Two requests: 3 queries on 40 keys, one query on 20; kv_indices has a page id more than they need.
QO_LENS, KV_LENS = (3, 1), (40, 20)
NUM_PAGES = 6


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def plan_arguments() -> dict[str, Any]:
    return {
        "qo_indptr": int32(0, 3, 4),
        "kv_indptr": int32(0, 3, 5),
        "kv_indices": int32(4, 0, 5, 1, 2, 3),
        "kv_len_arr": int32(*KV_LENS),
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim_qk": HEAD_DIM,
        "head_dim_vo": HEAD_DIM,
        "page_size": PAGE_SIZE,
    }


def run_arguments() -> dict[str, Any]:
    num_rows = sum(QO_LENS)
    return {
        "q": torch.zeros(num_rows, 4, HEAD_DIM, dtype=torch.bfloat16),
        "kv_cache": torch.zeros(NUM_PAGES, 2, PAGE_SIZE, 2, HEAD_DIM, dtype=torch.bfloat16),
        "out": torch.full((num_rows, 4, HEAD_DIM), math.nan, dtype=torch.bfloat16),
        "lse": torch.full((num_rows, 4), math.nan),
    }


def small_attention(**changes: Any) -> onewave.BatchAttention:
    limits = {"max_batch_size": 4, "max_total_qo_len": 64, "max_kv_len": 512}
    return onewave.BatchAttention(**({"device": "cpu"} | limits | changes))


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values of two bytes each, 8 bytes past a 16-byte boundary."""
    return torch.zeros(tensor.numel() + 4, dtype=tensor.dtype)[4:].view_as(tensor).copy_(tensor)


# What is changed in plan(): the argument that the message names, its value, and the rest of the message.
BAD_PLANS: dict[str, tuple[str, Any, str]] = {
    "a list": ("qo_indptr", [0, 3, 4], "is a list; it must be a torch.Tensor"),
    "int64 lengths": ("qo_indptr", torch.tensor([0, 3, 4]), "torch.int64; it must be torch.int32"),
    "int64 page ids": ("kv_indices", torch.arange(6), "torch.int64; it must be torch.int32"),
    "two dimensions": ("kv_len_arr", int32(*KV_LENS)[None], r"shape \(1, 2\); it must have 1 dimension"),
    "another device": (
        "kv_indptr",
        torch.empty(3, dtype=torch.int32, device="meta"),
        "meta; it must be on cpu",
    ),
    "page ids elsewhere": ("kv_indices", torch.empty(6, dtype=torch.int32, device="meta"), "must be on cpu"),
    "every second element": ("kv_len_arr", int32(40, 0, 20, 0)[::2], "it must be contiguous"),
    "indptr too short": ("qo_indptr", int32(0, 3), "has 2 elements; it must have 3"),
    "indptr too long": ("kv_indptr", int32(0, 3, 5, 5), "has 4 elements; it must have 3"),
    "queries that go back": ("qo_indptr", int32(0, 5, 4), "qo_indptr"),
    "queries that start late": ("qo_indptr", int32(1, 3, 4), "qo_indptr"),
    "queries that start early": ("qo_indptr", int32(-1, 3, 4), "qo_indptr"),
    "pages that go back": ("kv_indptr", int32(0, 6, 5), "kv_indptr"),
    "pages that end below 0": ("kv_indptr", int32(0, 3, -5), "kv_indptr"),
    "pages that start below 0": ("kv_indptr", int32(-1, 3, 5), "kv_indptr"),
    "a negative length": ("kv_len_arr", int32(40, -1), "kv_len_arr.*-1"),
    "a length beyond the limit": ("kv_len_arr", int32(513, 20), "513.*512"),
    "a length beyond its pages": ("kv_len_arr", int32(49, 20), "49"),
    "too many queries": ("qo_indptr", int32(0, 3, 65), "65.*64"),
    "too few page ids": ("kv_indices", int32(4, 0, 5, 1), "has 4 page ids; it must have 5"),
    "a negative page id": ("kv_indices", int32(4, 0, -2, 1, 2), "page id -2"),
    "heads that do not divide": ("num_kv_heads", 3, "3"),
    "no heads": ("num_kv_heads", 0, "is 0; it must be from 1"),
    "a group of 65": ("num_qo_heads", 130, "130|65"),
    "half a head": ("num_qo_heads", 4.5, "is 4.5; it must be an int"),
    "page_size 0": ("page_size", 0, "is 0; it must be from 1"),
    "a head_dim_vo as a float": ("head_dim_vo", 64.5, "is 64.5; it must be an int"),
    "causal as a number": ("causal", 1, "is 1; it must be a bool"),
    "sm_scale 0": ("sm_scale", 0.0, "is 0.0; it must be positive and finite"),
    "sm_scale NaN": ("sm_scale", math.nan, "is nan; it must be positive and finite"),
    "sm_scale as text": ("sm_scale", "1", "is '1'; it must be a float"),
    "sm_scale beyond float32": ("sm_scale", 1e39, "is 1e[+]39; it must be positive and finite in float32"),
    "sm_scale below float32": ("sm_scale", 1e-50, "is 1e-50; it must be positive"),
    "float64 queries": ("q_data_type", torch.float64, "is torch.float64; it must be one of"),
    "another type of keys": ("kv_data_type", torch.float16, "is torch.float16; it must equal q_data_type"),
    "queries of a named type": ("q_data_type", "bfloat16", "is 'bfloat16'; it must be one of torch"),
    "soft cap": ("logits_soft_cap", -30.0, "is -30.0; it must be positive and finite"),
    "soft cap as a tensor": ("logits_soft_cap", torch.zeros(4), "is a Tensor; it must be a float or None"),
    "profiler as a number": ("use_profiler", 1, "is 1; it must be a bool"),
}
ERRORS = (TypeError, ValueError, NotImplementedError)


@pytest.mark.parametrize("mistake", BAD_PLANS)
def test_plan_refuses(mistake: str) -> None:
    """And keeps the last plan."""
    name, value, message = BAD_PLANS[mistake]
    attention = small_attention()
    attention.plan(**plan_arguments())
    before = attention.plan_bytes()
    with pytest.raises(ERRORS, match=name) as error:
        attention.plan(**(plan_arguments() | {name: value}))
    error.match(message)
    assert attention.plan_bytes() == before
    attention.run(**run_arguments())


def test_unsupported_head_dim() -> None:
    for name in ("head_dim_qk", "head_dim_vo"):
        with pytest.raises(ValueError, match=f"{name} is 80, it must be a multiple of 32"):
            small_attention().plan(**(plan_arguments() | {name: 80}))


def test_batch_beyond_the_limit() -> None:
    lengths = {"qo_indptr": int32(*range(6)), "kv_indptr": int32(*range(6)), "kv_len_arr": int32(*[1] * 5)}
    with pytest.raises(ValueError, match="5.*4"):
        small_attention().plan(**(plan_arguments() | lengths))


# What is changed in run(): the argument, its value made from the right one, and the rest of the message.
BAD_RUNS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a list": ("q", lambda q: q.tolist(), "is a list; it must be a torch.Tensor"),
    "another type": ("q", lambda q: q.half(), "has dtype torch.float16; it must be torch.bfloat16"),
    "another device": ("q", lambda q: q.to("meta"), "is on device meta; it must be on cpu"),
    "rank 2": ("q", lambda q: q[:, 0], "it must have 3 dimensions"),
    "too few rows": ("q", lambda q: q[:3], "has 3 rows; it must have the plan's 4"),
    "too few heads": ("q", lambda q: q[:, :2], r"it must be \[any, 4, 64\]: total_qo_len, num_qo_heads"),
    "an odd address": ("q", shifted, "it must start at a multiple of 16 bytes"),
    "columns apart": ("q", lambda q: q.repeat(1, 1, 2)[..., ::2], "the last one must be 1"),
    "odd strides": (
        "q",
        lambda q: q.repeat(1, 1, 2)[..., :68].contiguous()[..., :64],
        "multiples of 16 bytes",
    ),
    "cache of another type": ("kv_cache", lambda cache: cache.float(), "float32; it must be torch.bfloat16"),
    "no cache": ("kv_cache", lambda _: None, r"is a NoneType; it must be a torch.Tensor or a \(k, v\) pair"),
    "cache without a pair": ("kv_cache", lambda cache: cache[:, 0], "it must have 5 dimensions"),
    "cache of another page size": (
        "kv_cache",
        lambda cache: cache[:, :, :8],
        r"it must be \[any, 2, 16, 2, 64\]",
    ),
    "cache of too few pages": ("kv_cache", lambda cache: cache[:5], "kv_indices of the plan has page id 5"),
    "three caches": ("kv_cache", lambda cache: (cache, cache, cache), "has 3 tensors"),
    "a pair of two sizes": ("kv_cache", lambda cache: (cache[:, 0], cache[1:, 1]), "6 pages of k and 5 of v"),
    "k of rank 5": ("kv_cache", lambda cache: (cache, cache[:, 1]), r"kv_cache\[0\] has shape.*4 dimensions"),
    "out of another type": ("out", lambda out: out.float(), "has dtype torch.float32"),
    "out of too few rows": ("out", lambda out: out[:3], "has 3 rows; it must have the plan's 4"),
    "lse of another type": (
        "lse",
        lambda lse: lse.half(),
        "has dtype torch.float16; it must be torch.float32",
    ),
    "lse of too few rows": ("lse", lambda lse: lse[:3], "has 3 rows; it must have the plan's 4"),
    "lse of another shape": ("lse", lambda lse: lse[:, :2], r"it must be \[any, 4\]"),
    "lse by columns": ("lse", lambda lse: lse.T.contiguous().T, "it must be contiguous"),
    "k_scale as text": ("k_scale", lambda _: "1", "is '1'; it must be a float or a float32 tensor"),
    "v_scale beyond float32": ("v_scale", lambda _: 1e39, "is 1e[+]39; it must be positive and finite"),
    "k_scale 0": ("k_scale", lambda _: 0.0, "is 0.0; it must be positive and finite"),
    "k_scale for each head": (
        "k_scale",
        lambda _: torch.ones(4),
        r"has shape \(4,\); it must have one element",
    ),
    "v_scale float64": ("v_scale", lambda _: torch.ones(1).double(), "has dtype torch.float64"),
    "soft cap": ("logits_soft_cap", lambda _: 30.0, "is 30.0; it must be 0.0 or equal the plan's, 0.0"),
    "profiler": (
        "profiler_buffer",
        lambda _: torch.zeros(1),
        "must be None after a plan.. without use_profiler",
    ),
    "scale factors": ("kv_cache_sf", lambda _: torch.zeros(1), "is not supported in this version"),
}


@pytest.mark.parametrize("is_first", [True, False], ids=["first run", "later run"])
@pytest.mark.parametrize("mistake", BAD_RUNS)
def test_run_refuses(mistake: str, is_first: bool) -> None:
    """Also where the run before had the right arguments, whose layout is not checked again."""
    name, change, message = BAD_RUNS[mistake]
    attention = small_attention()
    attention.plan(**plan_arguments())
    if not is_first:
        attention.run(**run_arguments())
    arguments = run_arguments()
    with pytest.raises(ERRORS, match=name) as error:
        attention.run(**(arguments | {name: change(arguments.get(name))}))
    error.match(message)
    assert bool(arguments["out"].isnan().all() and arguments["lse"].isnan().all()), "something was written"


def test_a_pair_is_no_single_cache_of_the_same_layout() -> None:
    attention = small_attention()
    attention.plan(**plan_arguments())
    arguments = run_arguments()
    attention.run(**arguments)
    with pytest.raises(ERRORS, match="kv_cache"):
        attention.run(**(arguments | {"kv_cache": (arguments["kv_cache"], None)}))


def test_what_a_later_plan_needs_is_checked_again() -> None:
    attention = small_attention()
    attention.plan(**plan_arguments())
    attention.run(**run_arguments())
    attention.plan(**(plan_arguments() | {"qo_indptr": int32(0, 3, 5)}))
    with pytest.raises(ValueError, match="q has 4 rows; it must have the plan's 5 or more"):
        attention.run(**run_arguments())
    attention.plan(**(plan_arguments() | {"kv_indices": int32(4, 0, 5, 1, 600)}))
    with pytest.raises(ValueError, match="page id 600; it must be below"):
        attention.run(**run_arguments())
    halves = {"num_qo_heads": 2, "num_kv_heads": 1}
    attention.plan(**(plan_arguments() | halves))
    with pytest.raises(ValueError, match="q has shape"):
        attention.run(**run_arguments())


def test_run_before_plan() -> None:
    with pytest.raises(RuntimeError, match=r"run\(\) needs a plan; call plan\(\) first"):
        small_attention().run(**run_arguments())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kv_layout", "HDN", "is 'HDN'; it must be 'NHD' or 'HND'"),
        ("device", "meta", "is 'meta'; it must be 'cuda'"),
        ("device", "gpu", "is 'gpu'; it must be 'cuda'"),
        ("device", None, "is 'None'; it must be 'cuda'"),
        ("split_policy", "even", "is 'even'; it must be 'balanced' or 'fixed'"),
        ("max_batch_size", 0, "is 0; it must be from 1"),
        ("max_kv_len", -1, "is -1; it must be from 1"),
        ("max_kv_len", 2**30 - 255, "it must be from 1 to 1073741568"),
        ("max_total_qo_len", 2**31, "it must be from 1 to 2147483647"),
        ("num_ctas", 1025, "is 1025; it must be from 1 to 1024"),
        ("num_ctas", "all", "is 'all'; it must be an int"),
        ("workspace", b"", "is a bytes; it must be a torch.Tensor"),
        ("workspace", torch.zeros(256), "torch.float32; it must be torch.uint8"),
        ("workspace", torch.zeros(256, dtype=torch.uint8, device="meta"), "meta; it must be on cpu"),
        ("workspace", torch.zeros(16, 16, dtype=torch.uint8), "it must be one-dimensional"),
        ("workspace", torch.zeros(512, dtype=torch.uint8)[1:], "it must start at a multiple of 256 bytes"),
    ],
)
def test_constructor_refuses(name: str, value: Any, message: str) -> None:
    with pytest.raises(ERRORS, match=name) as error:
        small_attention(**{name: value})
    error.match(message)


def test_workspace_too_small() -> None:
    num_bytes = onewave.workspace_size(
        max_batch_size=4,
        max_total_qo_len=64,
        max_kv_len=512,
        num_ctas=8,
        num_qo_heads=4,
        num_kv_heads=2,
        head_dim=HEAD_DIM,
    )
    memory = torch.zeros(num_bytes + 256, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 256 :]
    with pytest.raises(ValueError, match=f"workspace has {num_bytes - 1} bytes; it must have {num_bytes} "):
        small_attention(num_ctas=8, workspace=memory[: num_bytes - 1]).plan(**plan_arguments())
    small_attention(num_ctas=8, workspace=memory[:num_bytes]).plan(**plan_arguments())


def test_workspace_size_refuses() -> None:
    heads = {"num_qo_heads": 8, "num_kv_heads": 3, "head_dim": 64}
    with pytest.raises(ValueError, match="num_kv_heads|num_qo_heads"):
        onewave.workspace_size(num_ctas=8, **heads)
    with pytest.raises(ValueError, match="head_dim"):
        onewave.workspace_size(num_ctas=8, **(heads | {"num_kv_heads": 4, "head_dim": 80}))
    with pytest.raises(TypeError, match="head_dim is '64'; it must be an int"):
        onewave.workspace_size(num_ctas=8, **(heads | {"head_dim": "64"}))
    with pytest.raises(ValueError, match="dtype is 'bfloat16'; it must be one of"):
        onewave.workspace_size(num_ctas=8, **heads, dtype="bfloat16")


def has_driver() -> bool:
    try:
        _core.device_info(0)
    except _core.DeviceError as error:
        return "no NVIDIA driver" not in str(error)
    return True


@pytest.mark.skipif(has_driver(), reason="the machine has a driver")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda", 0)])
def test_no_driver(device: torch.device | str) -> None:
    with pytest.raises(onewave.DeviceError, match="no NVIDIA driver was found.*580"):
        onewave.BatchAttention(device=device)
