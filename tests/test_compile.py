"""run() inside torch.compile: one graph without breaks for every plan, equal to eager, for inference only."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import onewave
import pytest
import torch
from needs import missing, needed_program
from test_errors import int32, plan_arguments, small_attention
from test_interface import random_run_arguments
from torch.utils._triton import has_triton

each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, NUM_PAGES = 4, 2, 64, 16, 40
HIDDEN_SIZE = 96
# (qo_len, kv_len) of the requests of each step. No step has one token alone: torch.compile has a graph of its own for
# a size of 1.
STEPS = [
    [(5, 40), (1, 100)],
    [(1, 41), (1, 101), (0, 7), (33, 33)],
    [(1, 300), (3, 3)],
    [(60, 200)],
    [(2, 2), (1, 42)],
]
# Where a graph takes any number of rows.
MAX_ROWS = 64


@pytest.fixture(autouse=True)
def compiled_afresh_for_inference() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


class Layer(torch.nn.Module):
    """Projections, keys and values into their pages, and run(), as a model has them."""

    kv_cache: torch.Tensor

    def __init__(self, attention: onewave.BatchAttention, device: str) -> None:
        super().__init__()
        like: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
        torch.manual_seed(1)
        self.attention = attention
        self.qkv = torch.nn.Linear(HIDDEN_SIZE, (NUM_QO_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, **like)
        self.projection = torch.nn.Linear(NUM_QO_HEADS * HEAD_DIM, HIDDEN_SIZE, **like)
        cache = torch.randn(NUM_PAGES, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, **like)
        self.register_buffer("kv_cache", cache)

    def forward(
        self, hidden: torch.Tensor, slots: torch.Tensor, *outputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads = self.qkv(hidden).unflatten(1, (-1, HEAD_DIM))
        q, k, v = heads.split([NUM_QO_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
        self.kv_cache[slots // PAGE_SIZE, :, slots % PAGE_SIZE] = torch.stack([k, v], dim=1)
        out, lse = self.attention.run(q, self.kv_cache, *outputs)
        return self.projection(out.flatten(1)), lse


class Steps:
    """A layer on a device, planned for one step after the other; each runs eagerly, and again as it was compiled."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.attention = small_attention(device=device)
        self.layer = Layer(self.attention, device)

    def plan(self, requests: list[tuple[int, int]], causal: bool, num_rows: int = 0) -> int:
        """Makes the inputs too, of `num_rows` where those are more than the tokens; the rest writes to the last page,
        which no request has. Returns the number of tokens."""
        page_ids = torch.randperm(NUM_PAGES - 1, dtype=torch.int32)
        qo_indptr, kv_indptr, slots = [0], [0], []
        for qo_len, kv_len in requests:
            first_page = kv_indptr[-1]
            qo_indptr.append(qo_indptr[-1] + qo_len)
            kv_indptr.append(first_page + -(-kv_len // PAGE_SIZE))
            for position in range(kv_len - qo_len, kv_len):
                page_id = int(page_ids[first_page + position // PAGE_SIZE])
                slots.append(page_id * PAGE_SIZE + position % PAGE_SIZE)
        slots += [(NUM_PAGES - 1) * PAGE_SIZE] * (max(qo_indptr[-1], num_rows) - len(slots))
        self.attention.plan(
            int32(*qo_indptr),
            int32(*kv_indptr),
            page_ids,
            int32(*(kv_len for _, kv_len in requests)),
            *(NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM, PAGE_SIZE),
            causal=causal,
        )
        self.slots = torch.tensor(slots, device=self.device)
        self.hidden = torch.randn(len(slots), HIDDEN_SIZE, dtype=torch.bfloat16, device=self.device)
        return qo_indptr[-1]

    def check(self, compiled: Callable[..., Any], num_tokens: int, **tolerance: float) -> None:
        cache = self.layer.kv_cache
        before = cache.clone()
        expected = (*self.layer(self.hidden, self.slots), cache[:-1].clone())
        cache.copy_(before)
        actual = (*compiled(self.hidden, self.slots), cache[:-1])
        for one, other in zip(actual[:2], expected[:2], strict=True):
            torch.testing.assert_close(one[:num_tokens], other[:num_tokens], **tolerance)
        torch.testing.assert_close(actual[2], expected[2], **tolerance)


# The same kernels in the same order.
EXACT = {"atol": 0.0, "rtol": 0.0}
# Inductor may take another matrix product: an ulp of bfloat16 in q, k and v, and what attention makes of it.
ROUNDED = {"atol": 0.02, "rtol": 0.02}


def check_steps(steps: Steps, backend: str, tolerance: dict[str, float]) -> None:
    compiled = torch.compile(steps.layer, fullgraph=True, dynamic=True, backend=backend)
    for i, requests in enumerate(STEPS):
        num_tokens = steps.plan(requests, causal=i % 2 == 0)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            steps.check(compiled, num_tokens, **tolerance)


@each_device
def test_one_graph_for_every_plan(device: str) -> None:
    check_steps(Steps(device), "aot_eager", EXACT)


@each_device
def test_inductor(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which copies the cache for no run: it is written and read in place."""
    needed_program("g++")
    if device == "cuda" and not has_triton():
        missing("Inductor needs triton for a GPU")
    steps = Steps(device)
    run = steps.attention._run
    caches = set()

    def recorded(q: torch.Tensor, kv_cache: torch.Tensor, *rest: Any, **options: Any) -> Any:
        caches.add(kv_cache.data_ptr())
        return run(q, kv_cache, *rest, **options)

    monkeypatch.setattr(steps.attention, "_run", recorded)
    check_steps(steps, "inductor", ROUNDED)
    assert caches == {steps.layer.kv_cache.data_ptr()}


@pytest.mark.gpu
def test_cuda_graphs_of_inductor() -> None:
    """mode="reduce-overhead" with one number of rows: recorded at the second call, replayed for later plans."""
    if not has_triton():
        missing("Inductor needs triton for a GPU")
    steps = Steps("cuda")
    compiled = torch.compile(steps.layer, fullgraph=True, mode="reduce-overhead")
    torch._dynamo.utils.counters.clear()
    for i, requests in enumerate(STEPS * 2):
        num_tokens = steps.plan(requests, causal=i % 2 == 0, num_rows=MAX_ROWS)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            steps.check(compiled, num_tokens, **ROUNDED)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    with pytest.raises(ValueError, match="65 query tokens; it must be at most 64, the most rows .* captured"):
        steps.plan([(65, 65)], causal=True)


def on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) for name, value in arguments.items()}


def planned_attention(device: str) -> onewave.BatchAttention:
    attention = small_attention(device=device)
    attention.plan(**plan_arguments(), causal=True)
    return attention


def graph_of(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@each_device
def test_outputs_that_are_given(device: str) -> None:
    """They are returned, and rows beyond the plan stay: also those of a view."""
    attention = planned_attention(device)
    arguments = on(device, random_run_arguments())
    num_rows = arguments["q"].shape[0]
    q = torch.cat([arguments["q"]] * 2)
    wide = torch.full((2 * num_rows, 8, HEAD_DIM), 7.0, dtype=q.dtype, device=device)
    lse = torch.full((2 * num_rows, 4), 7.0, device=device)

    @graph_of
    def run(wide: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return attention.run(q, arguments["kv_cache"], out=wide[:, ::2], lse=lse)

    out, returned = run(wide, lse)
    expected = attention.run(**arguments)
    assert out.data_ptr() == wide.data_ptr() and returned is lse
    for one, other in zip((wide[:, ::2], lse), expected, strict=True):
        assert torch.equal(one[:num_rows], other)
        assert bool((one[num_rows:] == 7.0).all())
    assert bool((wide[:, 1::2] == 7.0).all())


OPTIONS: dict[str, dict[str, Any]] = {
    "floats": {"k_scale": 0.5, "v_scale": 2.0, "sm_scale": 0.3},
    "an int": {"v_scale": 2},
    "tensors": {name: torch.tensor(0.7) for name in ("k_scale", "v_scale", "sm_scale")},
    "no lse": {"return_lse": False},
    "programmatic dependent launch": {"enable_pdl": True},
}


@each_device
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("is_pair", [False, True])
def test_all_arguments(options: str, is_pair: bool, device: str) -> None:
    attention = planned_attention(device)
    arguments = on(device, random_run_arguments())
    q, kv_cache = arguments["q"], arguments["kv_cache"]
    given = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in OPTIONS[options].items()
    }

    def run(q: torch.Tensor, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return attention.run(q, kv_cache.unbind(1) if is_pair else kv_cache, **given)

    expected, expected_lse = run(q, kv_cache)
    out, lse = graph_of(run)(q, kv_cache)
    assert torch.equal(out, expected)
    assert lse is None if expected_lse is None else torch.equal(lse, expected_lse)


def test_a_scale_that_changes() -> None:
    attention = planned_attention("cpu")
    arguments = random_run_arguments()

    def run(k_scale: float) -> torch.Tensor:
        return attention.run(arguments["q"], arguments["kv_cache"], k_scale=k_scale)[0]

    compiled = graph_of(run)
    for k_scale in (0.5, 0.7, 0.9):
        assert torch.equal(compiled(k_scale), run(k_scale))


@pytest.mark.parametrize("scale", [torch.tensor([0.5, 2.0]), torch.rand(6, 4, 2) + 0.5])
def test_factors_of_an_fp8_cache(scale: torch.Tensor) -> None:
    """By head and by group of tokens: they are read by the graph's run, as they are then."""
    attention = small_attention()
    attention.plan(**plan_arguments(), causal=True, kv_data_type=torch.float8_e4m3fn)
    arguments = random_run_arguments()
    kv_cache = arguments["kv_cache"].to(torch.float8_e4m3fn)

    def run(q: torch.Tensor, kv_cache: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return attention.run(q, kv_cache, k_scale=scale, v_scale=scale)[0]

    compiled = graph_of(run)
    for factor in (1.0, 2.0):
        expected = run(arguments["q"], kv_cache, scale * factor)
        assert torch.equal(compiled(arguments["q"], kv_cache, scale * factor), expected)


FP8 = torch.float8_e4m3fn


def fp8_query_arguments() -> tuple[torch.Tensor, torch.Tensor]:
    arguments = random_run_arguments()
    return arguments["q"].to(FP8), arguments["kv_cache"].to(FP8)


@pytest.mark.parametrize("scale", [None, 0.5, torch.tensor(0.5), torch.tensor([0.5, 2.0])])
def test_fp8_queries(scale: float | torch.Tensor | None) -> None:
    """Their output is of the type of the last plan, and their factors are read by the graph's run."""
    attention = small_attention()
    q, kv_cache = fp8_query_arguments()

    def run(q: torch.Tensor, scale: float | torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        return attention.run(q, kv_cache, q_scale=scale)

    compiled = graph_of(run)
    for out_dtype in (None, torch.float16, torch.bfloat16):
        attention.plan(
            **plan_arguments(), causal=True, q_data_type=FP8, kv_data_type=FP8, o_data_type=out_dtype
        )
        expected = run(q, scale)
        assert expected[0].dtype == (out_dtype or torch.bfloat16)
        assert all(map(torch.equal, compiled(q, scale), expected))
    if isinstance(scale, torch.Tensor):
        doubled = run(q, scale * 2)
        assert not torch.equal(doubled[0], expected[0])
        assert all(map(torch.equal, compiled(q, scale * 2), doubled))


def test_operator_of_fp8_queries() -> None:
    """Without the check of its schema, which multiplies its arguments."""
    attention = small_attention()
    attention.plan(**plan_arguments(), q_data_type=FP8, kv_data_type=FP8)
    q, kv_cache = fp8_query_arguments()
    for number, tensor in ((0.5, None), (None, torch.tensor([0.5, 2.0]))):
        out, lse = torch.full(q.shape, torch.nan, dtype=torch.bfloat16), torch.empty(q.shape[:2])
        arguments = (
            *(attention._handle, q, [kv_cache], out, lse, *[None] * 6),
            *(number, tensor, False, 0, None, False),
        )
        torch.library.opcheck(torch.ops.onewave.run.default, arguments, test_utils="test_faketensor")
        torch.ops.onewave.run(*arguments)
        expected, _ = attention.run(q, kv_cache, q_scale=number if tensor is None else tensor)
        assert torch.equal(out, expected)


def test_objects_of_fp8_queries_share_a_graph() -> None:
    q, kv_cache = fp8_query_arguments()
    objects = [small_attention() for _ in range(4)]
    for i, attention in enumerate(objects):
        attention.plan(**plan_arguments(), q_data_type=FP8, kv_data_type=FP8, sm_scale=0.1 * (i + 1))

    def run(attention: onewave.BatchAttention) -> torch.Tensor:
        return attention.run(q, kv_cache)[0]

    compiled = graph_of(run)
    for i, attention in enumerate(objects):
        with torch._dynamo.config.patch(error_on_recompile=i > 1):
            assert torch.equal(compiled(attention), run(attention))


def test_objects_share_a_graph() -> None:
    """Layers of two kinds, or one object for each step in flight: the second object compiles once more, no other."""
    arguments = random_run_arguments()
    objects = [small_attention() for _ in range(4)]
    for i, attention in enumerate(objects):
        attention.plan(**plan_arguments(), sm_scale=0.1 * (i + 1))

    def run(attention: onewave.BatchAttention, q: torch.Tensor) -> torch.Tensor:
        return attention.run(q, arguments["kv_cache"])[0]

    compiled = graph_of(run)
    for i, attention in enumerate(objects):
        with torch._dynamo.config.patch(error_on_recompile=i > 1):
            assert torch.equal(compiled(attention, arguments["q"]), run(attention, arguments["q"]))


def call_operator(attention: int, arguments: dict[str, Any]) -> None:
    kv_cache = [arguments["kv_cache"]]
    no_scales = [None] * 8
    torch.ops.onewave.run(
        attention,
        arguments["q"],
        kv_cache,
        arguments["out"],
        arguments["lse"],
        *no_scales,
        False,
        0,
        None,
        False,
    )


def test_an_object_that_is_gone() -> None:
    """The operator does not keep it."""
    attention = planned_attention("cpu")
    handle = attention._handle
    call_operator(handle, random_run_arguments())
    del attention
    gc.collect()
    with pytest.raises(RuntimeError, match=f"attention is {handle}, a BatchAttention that is gone"):
        call_operator(handle, random_run_arguments())


def test_checks_of_a_graph_are_those_of_its_run() -> None:
    attention = small_attention()
    arguments = random_run_arguments()
    compiled = graph_of(lambda q, kv_cache: attention.run(q, kv_cache))
    with pytest.raises(RuntimeError, match=r"run\(\) needs a plan; call plan\(\) first"):
        compiled(arguments["q"], arguments["kv_cache"])
    attention.plan(**plan_arguments())
    compiled(arguments["q"], arguments["kv_cache"])
    with pytest.raises(ValueError, match="kv_indices of the plan has page id 5"):
        compiled(arguments["q"], arguments["kv_cache"][:5])
    with pytest.raises(ValueError, match="has dtype torch.float16; it must be torch.bfloat16"):
        compiled(arguments["q"].half(), arguments["kv_cache"])
    with pytest.raises(ValueError, match="kv_cache has 3 tensors; it must be one or a"):
        compiled(arguments["q"], [arguments["kv_cache"]] * 3)


def test_what_no_graph_can_have() -> None:
    attention = planned_attention("cpu")
    arguments = random_run_arguments()

    def run(q: torch.Tensor, kv_cache: torch.Tensor) -> Any:
        return attention.run(q, kv_cache, logits_soft_cap=30.0)

    def plan_and_run(q: torch.Tensor, kv_cache: torch.Tensor) -> Any:
        attention.plan(**plan_arguments())
        return attention.run(q, kv_cache)

    def update_and_run(q: torch.Tensor, kv_cache: torch.Tensor) -> Any:
        attention.update_kv_lens()
        return attention.run(q, kv_cache)

    unsupported = torch._dynamo.exc.Unsupported
    with pytest.raises(unsupported, match=r"update_kv_lens\(\) is inside torch.compile; it must run outside"):
        graph_of(update_and_run)(arguments["q"], arguments["kv_cache"])
    with pytest.raises(unsupported, match="logits_soft_cap is 30.0; it must be 0.0"):
        graph_of(run)(arguments["q"], arguments["kv_cache"])
    with pytest.raises(unsupported, match=r"plan\(\) is inside torch.compile; it must run outside"):
        graph_of(plan_and_run)(arguments["q"], arguments["kv_cache"])
    # Without fullgraph it is not in the graph.
    with pytest.raises(ValueError, match="logits_soft_cap is 30.0; it must be 0.0 or equal the plan"):
        torch.compile(run, backend="aot_eager")(arguments["q"], arguments["kv_cache"])


@each_device
@pytest.mark.parametrize("name", ["q", "kv_cache", "k_scale", "out", "lse"])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_gradients_are_refused(is_compiled: bool, name: str, device: str) -> None:
    """In grad mode; without it, a tensor that requires grad is as good as another."""
    attention = planned_attention(device)
    arguments = on(device, random_run_arguments() | {"k_scale": torch.tensor(0.5)})
    arguments[name].requires_grad_()

    def run(arguments: dict[str, torch.Tensor]) -> Any:
        return attention.run(**arguments)

    function = graph_of(run) if is_compiled else run
    message = (
        rf"{name} requires grad; onewave is for inference.*torch.inference_mode\(\) or torch.no_grad\(\)"
    )
    with torch.enable_grad(), pytest.raises(RuntimeError, match=message):
        function(arguments)
    function(arguments)
    with torch.inference_mode():
        function(arguments)
    arguments[name].requires_grad_(False)
    with torch.enable_grad():
        function(arguments)


@each_device
@pytest.mark.parametrize("changes", ["none", "a pair", "tensors", "no lse"])
def test_operator_is_what_its_schema_says(changes: str, device: str) -> None:
    attention = planned_attention(device)
    arguments = on(device, random_run_arguments())
    scale = torch.tensor(0.7, device=device)
    kv_cache = arguments["kv_cache"]
    torch.library.opcheck(
        torch.ops.onewave.run.default,
        (
            attention._handle,
            arguments["q"],
            list(kv_cache.unbind(1)) if changes == "a pair" else [kv_cache],
            arguments["out"],
            None if changes == "no lse" else arguments["lse"],
            *((None, scale) * 3 if changes == "tensors" else (0.5, None) * 3),
            *(None, None),
            False,
            0,
            torch.zeros(arguments["q"].shape[1], device=device) if changes == "tensors" else None,
            False,
        ),
    )
