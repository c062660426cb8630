"""transformers' models with onewave's attention: continuous batching against plain generation with the models' own
attention, and plain forward passes against that attention's logits."""

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import onewave
import onewave.integrations.transformers as integration
import pytest
import torch
from transformers_models import (
    MODELS,
    WINDOW,
    greedy,
    make_model,
    make_prompts,
    plain_outputs,
    transformers,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NUM_TOKENS = 14
PAGE_SIZE = 16
# Within a page, its edges, beyond the window and beyond a step; more than a step's tokens and the cache have room for at once.
PROMPTS = make_prompts((1, 15, 16, 17, WINDOW + 9, 70, 3, 41))
STEP_TOKENS = 40


@functools.cache
def model_of(name: str) -> Any:
    return make_model(name)


@functools.cache
def expected_of(name: str) -> list[list[int]]:
    return plain_outputs(model_of(name), PROMPTS, NUM_TOKENS)


def generate(model: Any, **options: Any) -> list[list[int]]:
    config = {"page_size": PAGE_SIZE, "max_batch_tokens": STEP_TOKENS, **options.pop("config", {})}
    batching = integration.make_config(model, PROMPTS, NUM_TOKENS, **config)
    return integration.generate_batch(model, PROMPTS, greedy(NUM_TOKENS), batching, **options)


@pytest.mark.parametrize("name", MODELS)
def test_generation_equals_plain_generation(name: str) -> None:
    assert generate(model_of(name)) == expected_of(name)


def test_expected_tokens_say_something() -> None:
    """Different in each request, and not one token again and again."""
    for name in MODELS:
        outputs = expected_of(name)
        assert len({tuple(output) for output in outputs}) == len(PROMPTS), name
        assert all(len(set(output)) > NUM_TOKENS // 3 for output in outputs), name


@pytest.mark.parametrize("name", ["Qwen2", "Qwen2 with windows"])
def test_another_scale_gives_other_tokens(name: str) -> None:
    model = make_model(name)
    for layer in model.model.layers:
        layer.self_attn.scaling *= 0.8
    outputs = generate(model)
    assert sum(ours != theirs for ours, theirs in zip(outputs, expected_of(name), strict=True)) > 3
    assert outputs == plain_outputs(model, PROMPTS, NUM_TOKENS)


def test_windows_change_the_tokens() -> None:
    model = make_model("Qwen2 with windows")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = WINDOW // 2 if layer.self_attn.sliding_window else None
    assert generate(model) != expected_of("Qwen2 with windows")


def test_requests_wait_and_are_evicted_where_the_cache_is_small() -> None:
    """16 pages, and the requests need up to 6 each."""
    assert generate(model_of("Qwen2"), config={"num_blocks": 16}) == expected_of("Qwen2")


def test_shared_prefixes() -> None:
    """transformers gives later requests the pages of an earlier one with the same first tokens."""
    prompts = [PROMPTS[5][:48] + tail for tail in make_prompts((2, 9, 30))]
    model = model_of("Qwen2")
    config = integration.make_config(model, prompts, NUM_TOKENS, page_size=PAGE_SIZE, max_batch_tokens=50)
    outputs = integration.generate_batch(model, prompts, greedy(NUM_TOKENS), config)
    assert outputs == plain_outputs(model, prompts, NUM_TOKENS)


def test_one_plan_for_each_kind_of_layers_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = 0
    plan = onewave.BatchAttention.plan

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal plans
        plans += 1
        plan(*args, **kwargs)

    monkeypatch.setattr(onewave.BatchAttention, "plan", counted)
    for name, num_kinds in (("Qwen2", 1), ("Qwen2 with windows", 2)):
        stopwatch = integration.Stopwatch(torch.device("cpu"))
        plans = 0
        generate(model_of(name), stopwatch=stopwatch)
        assert plans == num_kinds * stopwatch.num_steps
        parts = stopwatch.seconds()
        assert set(parts) == {"plan", "append", "run"} and min(parts.values()) > 0
        assert sum(parts.values()) < stopwatch.total_seconds


def test_layers_of_full_attention_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers gathers each request's keys where its cache is updated."""
    cache = transformers.generation.continuous_batching.PagedAttentionCache

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the cache was updated by transformers")

    expected = expected_of("Qwen2")
    monkeypatch.setattr(cache, "update", fail)
    assert generate(model_of("Qwen2")) == expected
    with pytest.raises(AssertionError, match="updated by transformers"):
        generate(model_of("Qwen2"), attention="sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_references(attention: str) -> None:
    """transformers' own, which the command compares with."""
    stopwatch = integration.Stopwatch(torch.device("cpu"))
    outputs = generate(model_of("Qwen2 with windows"), attention=attention, stopwatch=stopwatch)
    assert outputs == expected_of("Qwen2 with windows")
    assert 0 < stopwatch.seconds()["run"] < stopwatch.total_seconds
    assert stopwatch.num_steps >= NUM_TOKENS


def test_outputs_stream() -> None:
    seen: dict[int, list[int]] = {}

    def note(request: int, output: Any) -> None:
        assert len(output.generated_tokens) == len(seen.get(request, [])) + 1
        seen[request] = output.generated_tokens

    outputs = generate(model_of("Qwen2"), on_output=note)
    assert [seen[request] for request in range(len(PROMPTS))] == outputs == expected_of("Qwen2")


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sequences of 33 tokens, one of them padded on the left, and their mask."""
    ids = torch.tensor(make_prompts((33, 33), seed=1))
    mask = torch.ones_like(ids)
    mask[0, :12] = 0
    return ids, mask


@torch.no_grad()
def logits_of(model: Any, attention: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    integration.register()
    model.set_attn_implementation(attention)
    logits: torch.Tensor = model(*args, **kwargs).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_logits_of_a_plain_forward_pass(name: str, padding: str) -> None:
    ids, mask = inputs()
    kwargs = {"none": {}, "left": {"attention_mask": mask}, "right": {"attention_mask": mask.flip(1)}}[
        padding
    ]
    model = model_of(name)
    expected, logits = (logits_of(model, attention, ids, **kwargs) for attention in ("eager", "onewave"))
    seen = kwargs.get("attention_mask", torch.ones_like(ids)).bool()
    assert expected.abs().max() > 1
    # Float32 sums of some hundred terms, three layers deep.
    torch.testing.assert_close(logits[seen], expected[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Qwen2", "Qwen2 with windows"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_plain_generation(name: str, cache: str, is_padded: bool) -> None:
    ids, mask = inputs()
    config = transformers.GenerationConfig(do_sample=False, max_new_tokens=6, cache_implementation=cache)
    model = model_of(name)
    outputs = []
    integration.register()
    for attention in ("eager", "onewave"):
        model.set_attn_implementation(attention)
        mask = mask if is_padded else torch.ones_like(mask)
        outputs.append(model.generate(ids, attention_mask=mask, generation_config=config))
    assert torch.equal(*outputs)


def test_a_mask_that_is_written_anew() -> None:
    """Masks of the caller's own, in the same memory for the next pass."""
    ids, _ = inputs()
    model = model_of("Qwen2")
    mask = torch.ones(1, 1, 33, 33, dtype=torch.bool).tril()
    before = logits_of(model, "onewave", ids, attention_mask=mask)
    mask[..., 5:20] = False
    mask[..., 0] = True
    logits = logits_of(model, "onewave", ids, attention_mask=mask)
    expected = logits_of(model, "sdpa", ids, attention_mask=mask.expand(2, -1, -1, -1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (before - logits).abs().max() > 0.1


def test_layers_with_masks_of_their_own() -> None:
    """In one forward pass, as chunked attention has them."""
    integration.register()
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    q, k, v = (torch.randn(2, heads, 20, 32) for heads in (4, 2, 2))
    masks = [torch.rand(2, 1, 20, 20) < 0.5 for _ in range(3)]
    for layer_idx, mask in enumerate(masks):
        mask[..., 0] = True
        module = SimpleNamespace(layer_idx=layer_idx, num_key_value_groups=2)
        out, expected = (
            functions[name](module, q, k, v, mask, scaling=0.3)[0] for name in ("onewave", "sdpa")
        )
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("layout", ["heads first", "tokens first", "one sequence", "other strides"])
def test_keys_and_values_of_any_layout(layout: str) -> None:
    integration.register()
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    batch_size = 1 if layout == "one sequence" else 3
    q, k, v = (torch.randn(batch_size, heads, 9, 32) for heads in (4, 2, 2))
    if layout == "tokens first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "other strides":
        k, v = k.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([v, v], dim=2)[:, :, 5:14]
    elif layout == "one sequence":  # whose stride says nothing
        k, v = (x.as_strided(x.shape, (1, *x.stride()[1:])) for x in (k, v))
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=2)
    out, expected = (functions[name](module, q, k, v, None)[0] for name in ("onewave", "sdpa"))
    torch.testing.assert_close(out, expected)
