"""Mistakes that only a GPU can show: one clear error each, and nothing written or launched."""

import math
from dataclasses import replace
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import Outputs, make_attention, plan

pytestmark = pytest.mark.gpu

PAGE_SIZE = 16
HEADS = Heads(2, 4, 128)


class Step:
    """A planned step and the arguments of its run()."""

    def __init__(self) -> None:
        self.batch = DenseBatch([Lens(300, 1, 4), Lens(200, 20)], HEADS, torch.bfloat16, seed=1)
        self.paged = self.batch.paged(PAGE_SIZE)
        self.attention = make_attention(self.batch)
        self.outputs = Outputs(self.batch)

    def plan(self) -> None:
        plan(self.attention, self.batch, self.paged, PAGE_SIZE, causal=True)

    def run(self, **changes: Any) -> None:
        arguments = {
            "q": self.outputs.q,
            "kv_cache": self.paged.kv_cache,
            "out": self.outputs.out,
            "lse": self.outputs.lse,
        }
        self.attention.run(**(arguments | changes))

    def check(self) -> None:
        self.outputs.poison()
        self.run()
        self.outputs.check(self.batch.expected(True))


@pytest.fixture
def step() -> Step:
    planned = Step()
    planned.plan()
    return planned


BAD_ARGUMENTS = {
    "q on the host": ("q", lambda step: step.outputs.q.cpu()),
    "q of another type": ("q", lambda step: step.outputs.q.half()),
    "q too short": ("q", lambda step: step.outputs.q[:3]),
    "q of too few heads": ("q", lambda step: step.outputs.q[:, :4]),
    "q at an odd address": ("q", lambda step: _shifted(step.outputs.q)),
    "cache on the host": ("kv_cache", lambda step: step.paged.kv_cache.cpu()),
    "cache of another type": ("kv_cache", lambda step: step.paged.kv_cache.half()),
    "cache of another page size": ("kv_cache", lambda step: step.paged.kv_cache[:, :, :8]),
    "out on the host": ("out", lambda step: step.outputs.out.cpu()),
    "out of another type": ("out", lambda step: step.outputs.out.float()),
    "lse on the host": ("lse", lambda step: step.outputs.lse.cpu()),
    "lse of another type": ("lse", lambda step: step.outputs.lse.half()),
    "scale on the host": ("k_scale", lambda step: torch.tensor(1.0)),
}


def _shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one element past a 16-byte boundary."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return flat[1:].view_as(tensor).copy_(tensor)


@pytest.mark.parametrize("mistake", BAD_ARGUMENTS)
def test_run_refuses(step: Step, mistake: str) -> None:
    name, make = BAD_ARGUMENTS[mistake]
    with pytest.raises((TypeError, ValueError), match=name):
        step.run(**{name: make(step)})
    torch.cuda.synchronize()
    num_rows = step.outputs.num_rows
    assert bool(step.outputs.out[:num_rows].isnan().all()), "out was written"
    step.check()


def test_run_before_plan() -> None:
    step = Step()
    with pytest.raises((RuntimeError, ValueError), match="plan"):
        step.run()


def test_plan_on_a_capturing_stream(step: Step) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises((RuntimeError, ValueError), match="captur"):
            step.plan()
        step.run()
    step.check()


def test_baked_values_stay_after_a_capture(step: Step) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    other = DenseBatch([Lens(300, 1)], Heads(2, 2, 128), torch.bfloat16, seed=2)
    with pytest.raises((RuntimeError, ValueError), match="num_qo_heads"):
        plan(step.attention, other, other.paged(PAGE_SIZE), PAGE_SIZE, causal=True)
    with pytest.raises((RuntimeError, ValueError), match="page_size"):
        plan(step.attention, step.batch, step.batch.paged(32), 32, causal=True)
    step.outputs.poison()
    graph.replay()
    step.outputs.check(step.batch.expected(True))


def test_a_plan_beyond_the_captured_tensors(step: Step) -> None:
    """A replay would write past the end of out."""
    step.attention = onewave.BatchAttention()
    step.plan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    larger = DenseBatch([Lens(300, 40)], HEADS, torch.bfloat16, seed=2)
    with pytest.raises(ValueError, match="qo_indptr.*captured"):
        plan(step.attention, larger, larger.paged(PAGE_SIZE), PAGE_SIZE, causal=True)
    elsewhere = step.paged.kv_indices.cpu()
    elsewhere[0] = 10_000
    with pytest.raises(ValueError, match="kv_indices.*captured"):
        plan(step.attention, step.batch, replace(step.paged, kv_indices=elsewhere), PAGE_SIZE, causal=True)
    step.outputs.poison()
    graph.replay()
    step.outputs.check(step.batch.expected(True))


def test_a_failed_plan_leaves_the_last_one(step: Step) -> None:
    broken = replace(step.paged, kv_len_arr=torch.full_like(step.paged.kv_len_arr, -1))
    for _ in range(5):
        with pytest.raises(ValueError, match="kv_len"):
            plan(step.attention, step.batch, broken, PAGE_SIZE, causal=True)
    step.check()


@pytest.mark.parametrize("where", ["cuda", "cpu"])
def test_workspace(where: str) -> None:
    """One byte short, on the wrong side; and one that fits is used and not exceeded."""
    step = Step()
    limits = {"max_batch_size": 8, "max_total_qo_len": 64, "max_kv_len": 512, "num_ctas": 32}
    num_bytes = onewave.workspace_size(
        **limits,
        num_qo_heads=HEADS.num_qo_heads,
        num_kv_heads=HEADS.num_kv_heads,
        head_dim=HEADS.head_dim,
        page_size=PAGE_SIZE,
    )
    memory = torch.full((num_bytes + 256,), 0x5A, dtype=torch.uint8, device=where)

    def planned_with(workspace: torch.Tensor) -> None:
        step.attention = onewave.BatchAttention(device="cuda", workspace=workspace, **limits)
        step.plan()

    if where == "cpu":
        with pytest.raises((TypeError, ValueError), match="workspace"):
            planned_with(memory)
        return
    with pytest.raises(ValueError, match="workspace"):
        planned_with(memory[: num_bytes - 1])
    planned_with(memory[:num_bytes])
    step.check()
    assert bool((memory[num_bytes:] == 0x5A).all()), "the workspace was exceeded"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("head_dim", {"head_dim_qk": 160, "head_dim_vo": 160}),
        ("q_data_type", {"q_data_type": torch.float32, "kv_data_type": torch.float32}),
    ],
)
def test_there_is_no_kernel_for(step: Step, name: str, changes: dict[str, Any]) -> None:
    arguments = {
        "num_qo_heads": HEADS.num_qo_heads,
        "num_kv_heads": HEADS.num_kv_heads,
        "head_dim_qk": HEADS.head_dim,
        "head_dim_vo": HEADS.head_dim,
        "page_size": PAGE_SIZE,
    }
    paged = step.paged
    indices = (paged.qo_indptr, paged.kv_indptr, paged.kv_indices, paged.kv_len_arr)
    with pytest.raises((TypeError, ValueError), match=name):
        step.attention.plan(*indices, **(arguments | changes))
    step.check()


def test_page_ids_on_the_host_are_checked(step: Step) -> None:
    kv_indices = step.paged.kv_indices.cpu()
    kv_indices[2] = 10_000
    step.paged = replace(step.paged, kv_indices=kv_indices)
    step.plan()
    with pytest.raises(ValueError, match="kv_indices"):
        step.run()


def test_device_that_is_not_there() -> None:
    with pytest.raises((onewave.DeviceError, ValueError), match="device"):
        onewave.BatchAttention(device=f"cuda:{torch.cuda.device_count()}")


def test_nan_query_rows_stay_their_own(step: Step) -> None:
    """A NaN of one request does not reach another's rows, though a CTA computes both."""
    step.outputs.q[0] = math.nan
    step.outputs.poison()
    step.run()
    num_rows = step.outputs.num_rows
    assert bool(step.outputs.out[0].isnan().all())
    assert bool(step.outputs.out[1:num_rows].isfinite().all())
