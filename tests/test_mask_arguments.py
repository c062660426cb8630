"""The arguments of masks: wrong ones are named before anything is written, a graph has those of the last plan or refuses
it. test_masks.py has what queries see."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Masks
from gpu_checks import Outputs, make_attention, plan
from onewave.plan_format import Plan
from test_errors import int32, plan_arguments, run_arguments, small_attention
from test_interface import random_run_arguments

pytestmark = pytest.mark.usefixtures("float32_means_float32")

PAGE_SIZE = 16
# Of plan_arguments: 3 queries on 40 keys, and one on 20.
SEES_ALL = torch.ones(3 * 40 + 20, dtype=torch.bool)
SEES_SOME = torch.arange(len(SEES_ALL)) % 3 == 0
PACKED = torch.full((15 + 3,), 255, dtype=torch.uint8)

Results = tuple[torch.Tensor, torch.Tensor]


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def masked_plan_arguments() -> dict[str, Any]:
    """For num_windows=2."""
    return plan_arguments() | {"causal": True, "window_left": (-1, 5), "logits_soft_cap": 5.0}


def run(attention: onewave.BatchAttention, **options: Any) -> Results:
    out, lse = attention.run(**random_run_arguments(), **options)
    assert lse is not None
    return out, lse


def assert_same(results: Results, others: Results) -> None:
    for one, other in zip(results, others, strict=True):
        assert torch.equal(one, other)


@contextlib.contextmanager
def refused(error: str) -> Iterator[None]:
    """Any exception's type and message, of which `error` is a pattern."""
    with pytest.raises(Exception) as raised:
        yield
    text = f"{raised.typename}: {raised.value}"
    assert re.match(error, text), text


PACKED_MASK = {"packed_custom_mask": PACKED}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"causal": None}, "TypeError: causal is None; it must be a bool or a tensor of them"),
        ({"causal": [True, False]}, r"TypeError: causal is \[True, False\]; it must be a bool or a tensor"),
        ({"causal": SEES_ALL[:3]}, "ValueError: causal has 3 elements; it must have the 2 of kv_len_arr"),
        ({"causal": SEES_ALL[:2, None]}, r"ValueError: causal has shape \(2, 1\); it must have 1 dimension"),
        ({"causal": int32(1, 0)}, "ValueError: causal has dtype torch.int32; it must be torch.bool"),
        ({"window_left": 5}, "ValueError: window_left has 1 windows; it must have 2, the num_windows"),
        ({"window_left": (1, 2, 3)}, "ValueError: window_left has 3 windows; it must have 2"),
        ({"window_left": []}, "ValueError: window_left has 0 windows; it must have 2"),
        ({"window_left": (5, -2)}, "ValueError: window_left is -2; it must be from -1 to 2147483647"),
        ({"window_left": (2**31, 5)}, "ValueError: window_left is 2147483648; it must be from -1 to"),
        ({"window_left": (5, 1.5)}, "TypeError: window_left is 1.5; it must be an int"),
        ({"window_left": [None, 5]}, "TypeError: window_left is None; it must be an int"),
        ({"logits_soft_cap": -1.0}, "ValueError: logits_soft_cap is -1.0; it must be positive and finite"),
        ({"logits_soft_cap": math.inf}, "ValueError: logits_soft_cap is inf; it must be positive and finite"),
        ({"logits_soft_cap": math.nan}, "ValueError: logits_soft_cap is nan; it must be positive and finite"),
        ({"logits_soft_cap": 1e-50}, "ValueError: logits_soft_cap is 1e-50; .* finite in float32"),
        ({"logits_soft_cap": "30"}, "TypeError: logits_soft_cap is '30'; it must be a float or None"),
        ({"logits_soft_cap": torch.zeros(1)}, "TypeError: logits_soft_cap is a Tensor; it must be a float"),
        ({"logits_soft_cap": torch.zeros(4)}, "TypeError: logits_soft_cap is a Tensor; it must be a float"),
        ({"custom_mask": [True] * 140}, "TypeError: custom_mask is a list; it must be a torch.Tensor"),
        ({"custom_mask": SEES_ALL.byte()}, "ValueError: custom_mask has dtype torch.uint8; .* torch.bool"),
        ({"custom_mask": SEES_ALL[1:]}, "ValueError: custom_mask has 139 elements; it must have 140, qo_len"),
        ({"custom_mask": SEES_ALL[None]}, r"ValueError: custom_mask has shape \(1, 140\); .* 1 dimension"),
        ({"custom_mask": SEES_ALL} | PACKED_MASK, "ValueError: custom_mask and packed_custom_mask are given"),
        ({"custom_mask": SEES_SOME}, "ValueError: custom_mask takes 96 bytes .* at most max_mask_bytes = 95"),
        (
            {"custom_mask": SEES_ALL, "actual_kv_len_arr": int32(40, 20)},
            "ValueError: custom_mask is given with actual_kv_len_arr; lengths must be exact with it",
        ),
        # As many elements as the lengths would have, if there were any of that kind.
        (
            {"custom_mask": SEES_ALL[:119], "kv_len_arr": int32(40, -1)},
            "ValueError: custom_mask has 119 elements; it must have 120",
        ),
        ({"packed_custom_mask": [255] * 18}, "TypeError: packed_custom_mask is a list; it must be a torch"),
        ({"packed_custom_mask": PACKED.bool()}, "ValueError: packed_custom_mask has dtype torch.bool"),
        ({"packed_custom_mask": PACKED[1:]}, "ValueError: packed_custom_mask has 17 bytes; it must have 18"),
        (
            PACKED_MASK | {"mask_indptr": int64(1, 16, 19)},
            "ValueError: packed_custom_mask has 18 bytes; it must have 19",
        ),
        (
            {"mask_indptr": int64(0, 15, 18)},
            "ValueError: mask_indptr is given; .* without a packed_custom_mask",
        ),
        (
            {"custom_mask": SEES_ALL, "mask_indptr": int64(0, 15, 18)},
            "ValueError: mask_indptr is given; it must be None with a custom_mask",
        ),
        (PACKED_MASK | {"mask_indptr": [0, 15, 18]}, "TypeError: mask_indptr is a list; it must be a torch"),
        (PACKED_MASK | {"mask_indptr": int32(0, 15, 18)}, "ValueError: mask_indptr has dtype torch.int32"),
        (PACKED_MASK | {"mask_indptr": int64(0, 15)}, "ValueError: mask_indptr has 2 elements; .* have 3"),
        (
            PACKED_MASK | {"mask_indptr": int64(0, 15, 17)},
            "ValueError: mask_indptr gives request 1 2 bytes from 15, it must be 0, for no mask, or 3",
        ),
        (
            PACKED_MASK | {"mask_indptr": int64(0, 16, 16)},
            "ValueError: mask_indptr gives request 0 16 bytes from 0, it must be 0, for no mask, or 15",
        ),
        (PACKED_MASK | {"mask_indptr": int64(15, 0, 3)}, "ValueError: .* request 0 -15 bytes from 15"),
        (PACKED_MASK | {"mask_indptr": int64(-15, 0, 3)}, "ValueError: .* request 0 15 bytes from -15"),
    ],
)
def test_plan_refuses(changes: dict[str, Any], error: str) -> None:
    """And keeps the last plan of every window."""
    attention = small_attention(num_windows=2, max_mask_bytes=95)
    attention.plan(**masked_plan_arguments())
    before = [run(attention, window=window) for window in range(2)]
    with refused(error):
        attention.plan(**(masked_plan_arguments() | changes))
    for window in range(2):
        assert_same(run(attention, window=window), before[window])


def test_max_mask_bytes() -> None:
    """Of the plan, not of the caller: two tiles of 8 bytes, 16 for each of 4 queries, 16 to align them."""
    with pytest.raises(ValueError, match="max_mask_bytes is 0, it must be more for a custom_mask"):
        small_attention(max_mask_bytes=0).plan(**plan_arguments(), custom_mask=SEES_ALL)
    small_attention(max_mask_bytes=96).plan(**plan_arguments(), custom_mask=SEES_SOME)
    small_attention(max_mask_bytes=0).plan(**plan_arguments(), window_left=3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"logits_soft_cap": 6.0}, "ValueError: logits_soft_cap is 6.0; .* 0.0 or equal the plan's, 5.0"),
        ({"logits_soft_cap": math.nan}, "ValueError: logits_soft_cap is nan; it must be positive and finite"),
        ({"logits_soft_cap": torch.tensor(5.0)}, "TypeError: logits_soft_cap is a Tensor; .* a float"),
        ({"logits_soft_cap": torch.zeros(4)}, "TypeError: logits_soft_cap is a Tensor; it must be a float"),
        ({"window": 2}, "ValueError: window is 2; it must be from 0 to 1"),
        ({"window": -1}, "ValueError: window is -1; it must be from 0 to 1"),
        ({"window": True}, "TypeError: window is True; it must be an int"),
        ({"window": 0.0}, "TypeError: window is 0.0; it must be an int"),
        ({"window": None}, "TypeError: window is None; it must be an int"),
        ({"sinks": [0.0] * 4}, "TypeError: sinks is a list; it must be a torch.Tensor"),
        ({"sinks": torch.zeros(3)}, r"ValueError: sinks has shape \(3,\); it must be \[4\]: num_qo_heads"),
        ({"sinks": torch.zeros(1, 4)}, r"ValueError: sinks has shape \(1, 4\); it must have 1 dimension"),
        (
            {"sinks": torch.zeros(4).bfloat16()},
            "ValueError: sinks has dtype torch.bfloat16; .* torch.float32",
        ),
        ({"sinks": torch.zeros(8)[::2]}, r"ValueError: sinks has strides \(2,\); it must be contiguous"),
        ({"sinks": torch.zeros(4, device="meta")}, "ValueError: sinks is on device meta; it must be on cpu"),
        ({"natural_lse": 1}, "TypeError: natural_lse is 1; it must be a bool"),
    ],
)
def test_run_refuses(options: dict[str, Any], error: str) -> None:
    """Before anything is written."""
    attention = small_attention(num_windows=2)
    attention.plan(**masked_plan_arguments())
    arguments = run_arguments()
    with refused(error):
        attention.run(**arguments, **options)
    assert bool(arguments["out"].isnan().all() and arguments["lse"].isnan().all()), "something was written"


@pytest.mark.parametrize("is_compiled", [False, True])
def test_sinks_that_require_grad_are_refused(is_compiled: bool) -> None:
    """As all tensors of a run are, and in grad mode only: those of a model are parameters."""
    torch._dynamo.reset()
    attention = small_attention()
    attention.plan(**plan_arguments())
    arguments, sinks = random_run_arguments(), torch.zeros(4, requires_grad=True)

    def run(q: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return attention.run(q, arguments["kv_cache"], sinks=sinks)[0]

    function = torch.compile(run, fullgraph=True, backend="aot_eager") if is_compiled else run
    with torch.enable_grad(), pytest.raises(RuntimeError, match="sinks requires grad; onewave is for"):
        function(arguments["q"], sinks)
    with torch.no_grad():
        function(arguments["q"], sinks)


def test_the_plans_soft_cap_may_be_said_again() -> None:
    attention = small_attention(num_windows=2)
    attention.plan(**masked_plan_arguments())
    capped = run(attention)
    for same in (0.0, 5.0, 5, None):
        assert_same(run(attention, logits_soft_cap=same), capped)
    attention.plan(**(masked_plan_arguments() | {"logits_soft_cap": 0}))
    uncapped = run(attention)
    assert not torch.equal(uncapped[0], capped[0])
    attention.plan(**(masked_plan_arguments() | {"logits_soft_cap": None}))
    assert_same(run(attention, logits_soft_cap=0.0), uncapped)
    with pytest.raises(ValueError, match="logits_soft_cap is 5.0; it must be 0.0 or equal the plan's, 0.0"):
        run(attention, logits_soft_cap=5.0)


class SinkLayer(torch.nn.Module):
    def __init__(self, attention: onewave.BatchAttention) -> None:
        super().__init__()
        self.attention = attention
        self.sinks = torch.nn.Parameter(torch.linspace(-1, 4, 4))

    def forward(self, q: torch.Tensor, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.attention.run(q, kv_cache, window=1, sinks=self.sinks, natural_lse=True)


@torch.no_grad()
def test_masks_in_a_compiled_graph() -> None:
    """One for every plan."""
    torch._dynamo.reset()
    attention = small_attention(num_windows=2)
    layer = SinkLayer(attention)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    arguments = random_run_arguments()
    seen: list[torch.Tensor] = []
    changes_of_plans: list[dict[str, Any]] = [
        {},
        {"window_left": (-1, 0)},
        {"logits_soft_cap": 0.5},
        {"window_left": (5, -1), "custom_mask": SEES_SOME},
    ]
    for i, changes in enumerate(changes_of_plans):
        attention.plan(**(masked_plan_arguments() | changes))
        expected = layer(arguments["q"], arguments["kv_cache"])
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            assert_same(compiled(arguments["q"], arguments["kv_cache"]), expected)
        assert not any(torch.equal(expected[0], other) for other in seen)
        seen.append(expected[0])


# What the plan of a capture has, the arguments of its run, and what a later plan has.
GRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no masks, then a window": ({}, {}, {"window_left": (5, -1)}),
    "no masks, then a soft cap": ({}, {}, {"logits_soft_cap": 5.0}),
    "no masks, then a custom mask": ({}, {}, {"custom_mask": SEES_SOME}),
    "a window in the other layers": ({"window_left": (-1, 5)}, {}, {"window_left": (3, 5)}),
    "a mask that hides all": ({"custom_mask": ~SEES_ALL}, {}, {"custom_mask": SEES_SOME}),
}
# Of those the later plan is never refused.
KEPT_GRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no masks at all": ({}, {}, {"causal": torch.tensor([True, False])}),
    "sinks": ({}, {"sinks": torch.zeros(4)}, {"window_left": (5, 5), "logits_soft_cap": 5.0}),
    "another window": ({"window_left": (5, 5)}, {}, {"window_left": (0, 9), "custom_mask": SEES_SOME}),
    "another window of the same layers": ({"window_left": (-1, 5)}, {}, {"window_left": (-1, 9)}),
    "another window of those layers": ({"window_left": (-1, 5)}, {"window": 1}, {"window_left": (-1, 9)}),
    "no window": ({"window_left": (5, 5)}, {}, {}),
}


@pytest.mark.parametrize("name", [*GRAPHS, *KEPT_GRAPHS])
def test_a_captured_kernel_sees_what_a_later_plan_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the plan is refused. By the rule of cpp/launch.cpp: a run of a plan that says is_masked, or one
    with sinks, takes the kernel that looks at masks; others do not."""
    captured, options, later = (GRAPHS | KEPT_GRAPHS)[name]
    attention = small_attention(num_windows=2)
    unmasked = plan_arguments() | {"window_left": (-1, -1)}

    def needs_masked_kernel() -> bool:
        return bool(Plan(attention.plan_bytes(options.get("window", 0))).header["is_masked"])

    attention.plan(**(unmasked | captured))
    with monkeypatch.context() as capture:
        capture.setattr("onewave.attention.is_capturing", lambda device: True)
        run(attention, **options)
    sees_masks = needs_masked_kernel() or "sinks" in options
    try:
        attention.plan(**(unmasked | later))
    except RuntimeError as error:
        assert "run() was captured in a CUDA graph" in str(error) and name in GRAPHS
    assert sees_masks or not needs_masked_kernel()


@pytest.mark.gpu
@pytest.mark.parametrize("has_sinks", [False, True])
def test_a_graph_sees_the_masks_of_a_later_plan_or_refuses_it(has_sinks: bool, seed: int) -> None:
    """A plan without masks takes a kernel that looks at none, which the graph has then; not so with sinks."""
    heads = Heads(2, 4, 128)
    batch = DenseBatch([Lens(900, 1, 4), Lens(300, 70)], heads, torch.bfloat16, seed)
    paged, outputs = batch.paged(PAGE_SIZE), Outputs(batch)
    sinks = torch.linspace(-1, 4, heads.num_qo_heads, device="cuda") if has_sinks else None
    attention = make_attention(batch)
    plan(attention, batch, paged, PAGE_SIZE, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse, sinks=sinks)

    def check_replay(masks: Masks) -> None:
        outputs.poison()
        graph.replay()
        outputs.check(batch.expected(masks))

    check_replay(Masks(True, sinks=sinks))
    for options, masks in (
        ({"window_left": 5}, Masks(True, window_left=5, sinks=sinks)),
        ({"logits_soft_cap": 2.0}, Masks(True, soft_cap=2.0, sinks=sinks)),
    ):
        if has_sinks:
            plan(attention, batch, paged, PAGE_SIZE, True, **options)
            check_replay(masks)
        else:
            with pytest.raises(RuntimeError, match="the plan has a window.*captured"):
                plan(attention, batch, paged, PAGE_SIZE, True, **options)
            check_replay(Masks(True))
