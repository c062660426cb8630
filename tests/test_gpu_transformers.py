"""transformers' models with onewave's attention in 16 bits: on a GPU, and the same rules on the CPU executor.

Tokens of two computations in 16 bits differ where two logits are nearly equal, so each is held against the logits of the
model's own attention (onewave._cli.generate_check).
"""

import copy
import re
from typing import Any, NamedTuple

import onewave.integrations.transformers as integration
import pytest
import torch
from onewave._cli import main
from onewave._cli.generate_check import check_tokens
from transformers_models import MODELS, WINDOW, greedy, make_model, make_prompts

NUM_TOKENS = 24
# Of a page, its edges, the window, and several steps.
LENS = (1, 15, 16, 17, WINDOW + 9, 70, 257, 3, 600, 130)
STEP_TOKENS = 192
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


class Case(NamedTuple):
    name: str
    dtype: torch.dtype
    head_dim: int
    page_size: int


CASES = [
    Case("Qwen2", torch.bfloat16, 128, 256),
    Case("Qwen2", torch.float16, 64, 16),
    Case("Qwen2 with windows", torch.bfloat16, 64, 16),
    Case("Mistral", torch.float16, 128, 16),
    Case("Gemma2", torch.bfloat16, 128, 32),
    Case("GptOss", torch.bfloat16, 64, 4),
]


def generate(model: Any, case: Case, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    config = integration.make_config(
        model, prompts, NUM_TOKENS, page_size=case.page_size, max_batch_tokens=STEP_TOKENS
    )
    return integration.generate_batch(model, prompts, greedy(NUM_TOKENS), config, **options)


@torch.no_grad()
def logits_of(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """By the model's own attention."""
    model.set_attn_implementation("eager")
    logits: torch.Tensor = model(*args, **kwargs).logits
    return logits.float()


@pytest.mark.usefixtures("float32_means_float32", "one_torch_thread")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.head_dim}-{case.page_size}")
def test_tokens(case: Case, device: str) -> None:
    model = make_model(case.name, case.dtype, device, case.head_dim)
    prompts = make_prompts(LENS[:7] if device == "cpu" else LENS)
    stopwatch = integration.Stopwatch(model.device)
    outputs = generate(model, case, prompts, stopwatch=stopwatch)
    assert all(len(output) == NUM_TOKENS for output in outputs)
    check = check_tokens(model, prompts, outputs, "eager")
    print(f"{check.num_largest} of {check.num_tokens} tokens are those of float32")
    assert check.wrong == [] and check.num_largest >= 0.85 * check.num_tokens
    assert len({tuple(output) for output in outputs}) == len(prompts)
    parts = stopwatch.seconds()
    assert min(parts.values()) > 0 and sum(parts.values()) < stopwatch.total_seconds


@pytest.mark.usefixtures("float32_means_float32", "one_torch_thread")
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_tokens_of_another_scale_are_found(device: str) -> None:
    case = CASES[1]
    model = make_model(case.name, case.dtype, device, case.head_dim)
    prompts = make_prompts(LENS[:5])
    scaled = copy.deepcopy(model)
    for layer in scaled.model.layers:
        layer.self_attn.scaling *= 0.85
    assert check_tokens(model, prompts, generate(scaled, case, prompts), "eager").wrong


@pytest.mark.usefixtures("float32_means_float32", "one_torch_thread")
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_plain_forward_pass(name: str, device: str) -> None:
    """At most twice the error of the model's own attention, of all logits together and of the worst."""
    model = make_model(name, torch.bfloat16, device, 64)
    exact_model = copy.deepcopy(model).float()
    ids = torch.tensor(make_prompts((150, 150)), device=device)
    padding = torch.ones_like(ids)
    padding[0, :70] = 0
    integration.register()
    for mask in (None, padding):
        seen = torch.ones_like(ids).bool() if mask is None else mask.bool()
        exact, low = (logits_of(each, ids, attention_mask=mask)[seen] for each in (exact_model, model))
        model.set_attn_implementation("onewave")
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits.float()[seen]
        assert (logits - exact).norm() <= 2 * (low - exact).norm()
        assert (logits - exact).abs().max() <= 2 * (low - exact).abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_command(dtype: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside transformers' SDPA over the same cache."""
    monkeypatch.setenv("COLUMNS", "200")
    options = ("--num-requests", "24", "--prompt-lens", "4", "900", "--max-new-tokens", "48")
    assert main(["generate", "--device", "cuda", "--dtype", dtype, *options, "--check"]) == 0
    printed = capsys.readouterr().out
    print(printed)
    assert f"{dtype}, cuda; 24 prompts" in printed and "The tokens are right." in printed
    match = re.search(r"(\d+) of 1152 tokens are equal", printed)
    assert match and int(match[1]) > 0.1 * 1152


@pytest.mark.gpu
def test_float32_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--device", "cuda", "--dtype", "float32"]) == 2
    assert "--dtype is float32; it must be bfloat16 or float16 on a GPU" in " ".join(
        capsys.readouterr().out.split()
    )
