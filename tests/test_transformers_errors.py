"""What the integration with transformers refuses, and that it leaves a model as it was."""

import importlib
import subprocess
import sys
from typing import Any

import onewave.integrations.transformers as integration
import pytest
import torch
from onewave.integrations.transformers._library import check_version
from transformers_models import greedy, make_model, make_prompts, transformers

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PROMPTS = make_prompts((5, 20))


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("Qwen2")


def generate(model: Any, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[list[int]]:
    config = options.pop("config", None) or integration.make_config(model, prompts, 4, page_size=16)
    return integration.generate_batch(model, prompts, options.pop("greedy", greedy(4)), config, **options)


@pytest.mark.parametrize(
    ("version", "is_known"),
    [
        ("5.17.0", True),
        ("5.24.0", True),
        ("6.0.0.dev0", True),
        ("5.16.1", False),
        ("4.57.6", False),
        ("?", False),
    ],
)
def test_versions(version: str, is_known: bool) -> None:
    if is_known:
        check_version(version)
        return
    with pytest.raises(
        integration.MissingTransformers, match=r"needs 5\.17 or newer: .*onewave\[generate\]"
    ) as e:
        check_version(version)
    assert version in str(e.value)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(integration.MissingTransformers, match=r"pip install 'onewave\[generate\]'"):
        integration.register()


def test_the_command_without_transformers() -> None:
    """What imports without it says what to install."""
    code = "import sys; sys.modules['transformers'] = None; from onewave._cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == ""
    assert "pip install 'onewave[generate]'" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"attention": "flash"}, ValueError, "attention is 'flash'; it must be one of onewave, sdpa, eager"),
        ({"prompts": []}, ValueError, "prompts has no prompt"),
        ({"prompts": [[1], []]}, ValueError, "prompts has no prompt or an empty one"),
    ],
)
def test_arguments(model: Any, options: dict[str, Any], error: type[Exception], match: str) -> None:
    config = integration.make_config(model, PROMPTS, 4, page_size=16)
    with pytest.raises(error, match=match):
        generate(model, config=config, **options)


def test_generation_configs(model: Any) -> None:
    for config, error, match in (
        (transformers.GenerationConfig(do_sample=False), TypeError, "max_new_tokens is None"),
        (
            transformers.GenerationConfig(max_new_tokens=4, do_sample=True, num_return_sequences=2),
            ValueError,
            "num_return_sequences is 2",
        ),
    ):
        with pytest.raises(error, match=match):
            generate(model, greedy=config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_cuda_graph", True),
        ("use_cuda_graph", (False, True)),
        ("use_async_batching", True),
        ("default_compile_level", 1),
        ("varlen_compile_config", transformers.CompileConfig()),
        ("decode_compile_config", transformers.CompileConfig()),
    ],
)
def test_continuous_batching_configs(model: Any, name: str, value: Any) -> None:
    config = integration.make_config(model, PROMPTS, 4)
    setattr(config, name, value)
    with pytest.raises(NotImplementedError, match=f"{name} is .*must be None or False"):
        generate(model, config=config)


def test_a_step_that_fails_says_why_and_leaves_the_model_as_it_was() -> None:
    """A head_dim that onewave does not have, which transformers' thread meets."""
    model = make_model("Qwen2", head_dim=24)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="head_dim"):
        generate(model)
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks
    assert len(generate(model, attention="sdpa")[0]) == 4


def test_an_error_of_the_caller_stops_the_generation(model: Any) -> None:
    class Stopped(Exception):
        pass

    def stop(request: int, output: Any) -> None:
        raise Stopped

    model.set_attn_implementation("eager")
    with pytest.raises(Stopped):
        integration.generate_batch(model, PROMPTS, greedy(2000), on_output=stop)
    assert model.config._attn_implementation == "eager" and not model._forward_pre_hooks


def test_a_manager_that_the_model_keeps(model: Any) -> None:
    model._cached_continuous_batching_manager = object()
    try:
        with pytest.raises(ValueError, match="destroy_cached_continuous_batching_manager"):
            generate(model)
    finally:
        del model._cached_continuous_batching_manager


def test_reference_functions_are_put_back(model: Any) -> None:
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    before = functions["sdpa"]
    generate(model, attention="sdpa", stopwatch=integration.Stopwatch(torch.device("cpu")))
    assert functions["sdpa"] is before


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"attention_mask": torch.zeros(1, 1, 9, 9)}, NotImplementedError, "tensor of torch.float32"),
        (
            {"attention_mask": torch.ones(1, 1, 9, 5, dtype=torch.bool)},
            NotImplementedError,
            r"attention_mask has shape \[1, 1, 9, 5\]; it must have \[1, 1, 9, 9\]",
        ),
        ({"output_attentions": True}, NotImplementedError, "output_attentions is True"),
        ({"position_bias": torch.zeros(1)}, NotImplementedError, "position_bias is a Tensor"),
    ],
)
def test_plain_forward_passes(model: Any, kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    integration.register()
    model.set_attn_implementation("onewave")
    with torch.no_grad(), pytest.raises(error, match=match):
        model(torch.tensor([PROMPTS[0] + [1, 2, 3, 4]]), **kwargs)


def test_training(model: Any) -> None:
    integration.register()
    model.set_attn_implementation("onewave")
    with pytest.raises(RuntimeError, match="q requires grad"):
        model(torch.tensor([PROMPTS[0]]))
    module = make_model("Qwen2")
    module.set_attn_implementation("onewave")
    for layer in module.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with torch.no_grad(), pytest.raises(NotImplementedError, match=r"dropout is 0\.1"):
        module.train()(torch.tensor([PROMPTS[0]]))


def test_the_paged_function_outside_of_continuous_batching(model: Any) -> None:
    integration.register()
    model.set_attn_implementation("onewave_paged")
    with torch.no_grad(), pytest.raises(TypeError, match=r"cache is a NoneType.*continuous_batching"):
        model(torch.tensor([PROMPTS[0]]))
