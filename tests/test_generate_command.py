"""`python -m onewave generate` and the example, on the CPU: what they print, and that their check finds wrong tokens."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import needed_module
from onewave._cli import main
from onewave._cli.generate_check import check_tokens, count_equal
from test_cli import row
from transformers_models import make_model, make_prompts, plain_outputs, transformers

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# Comes with transformers.
tokenizers = needed_module("tokenizers")
ROOT = Path(__file__).parent.parent
FEW = ("--device", "cpu", "--num-requests", "3", "--prompt-lens", "4", "30", "--max-new-tokens", "5")


@pytest.fixture(autouse=True)
def wide_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_random_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *FEW, "--check"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"^randomly initialised Qwen2, shape small: 4 layers, 8/2 heads, float32, cpu; 3 ",
        printed,
        re.MULTILINE,
    )
    for attention in ("onewave", "sdpa"):
        assert re.search(rf"^{attention} .* 15/15 tokens, 3/3 requests, \d+ tokens/s$", printed, re.MULTILINE)
    for name, values in (
        ("new tokens", r"15 +│ 15"),
        ("steps", r"5 +│ 5"),
        ("throughput", r"[\d.]+ new tokens/s +│ [\d.]+ new tokens/s"),
        ("attention, of the time", r"[\d.]+%, \d+ us a step +│ [\d.]+%, \d+ us a step"),
        ("  plan", r"[\d.]+%, \d+ us a step +│ -"),
        ("  append", r"[\d.]+%, \d+ us a step +│ .*"),
        ("  run", r"[\d.]+%, \d+ us a step +│ [\d.]+%, \d+ us a step"),
    ):
        assert re.search(rf"│ {name} +│ {values}", printed), name
    parts = [float(row(printed, f"  {name}").partition("%")[0]) for name in ("plan", "append", "run")]
    whole = float(row(printed, "attention, of the time").partition("%")[0])
    assert sum(parts) == pytest.approx(whole, abs=0.2) and 0 < whole < 100
    assert (
        "15 of 15 tokens are equal to sdpa's, up to a request's first difference\n"
        "15 of 15 have the largest logit in float64 by sdpa on the tokens before\nThe tokens are right."
    ) in printed


def test_seed_and_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *FEW, "--dtype", "bfloat16", "--seed", "3", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "bfloat16, cpu" in printed and "The tokens are right." in printed


def test_a_wrong_scale_is_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from onewave.integrations.transformers._paged import PagedStep

    attend = PagedStep.attend

    def scaled(self: PagedStep, layer_idx: int, query: torch.Tensor, *args: Any) -> torch.Tensor:
        return attend(self, layer_idx, 1.3 * query, *args)

    monkeypatch.setattr(PagedStep, "attend", scaled)
    assert main(["generate", *FEW, "--check"]) == 1
    printed = capsys.readouterr().out
    assert "The tokens are WRONG." in printed
    assert re.search(r"request \d, token \d: \S+ below the largest; rounding explains ", printed)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights and a tokenizer of words w0, w1, ..."""
    path = tmp_path_factory.mktemp("model")
    model = make_model("Mistral")
    model.save_pretrained(path)
    words = {f"w{i}": i for i in range(model.config.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(path)
    return path


def test_model_of_the_user(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["generate", "--device", "cpu", "--model", str(model_dir), "--max-new-tokens", "3"]
    expected = plain_outputs(make_model("Mistral"), [[5, 6, 7], [9]], 3)
    texts = [" ".join(f"w{i}" for i in tokens) for tokens in ([5, 6, 7, *expected[0]], [9, *expected[1]])]
    assert main([*options, "--prompt", "w5 w6 w7", "w9", "--num-requests", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"{model_dir}: 3 layers, 4/2 heads, float32, cpu; 3 prompts of 1 to 3 tokens" in printed
    assert printed.endswith(f"{texts[0]}\n{texts[1]}\n{texts[0]}\n")
    (tmp_path / "prompts").write_text("w9\n\nw5 w6 w7\n")
    assert main([*options, "--prompts", str(tmp_path / "prompts")]) == 0
    assert capsys.readouterr().out.endswith(f"{texts[1]}\n{texts[0]}\n")
    assert main([*options, "--num-requests", "2", "--prompt-lens", "2", "2"]) == 0
    assert row(capsys.readouterr().out, "prompt tokens") == "4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "a"), "--prompt and --prompts need --model"),
        (("--model", "x", "--prompt", "a", "--prompts", "b"), "give --prompt or --prompts, not both"),
        (("--model", "x", "--prompts", "/nowhere/prompts"), "/nowhere/prompts"),
        (("--model", "/nowhere/model"), "/nowhere/model"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0; it must be from 1"),
        (("--num-requests", "0"), "--num-requests is 0; it must be from 1"),
        (("--prompt-lens", "9", "3"), "--prompt-lens is 9 3"),
        (("--device", "cuda"), "libcuda.so.1"),
    ],
)
def test_what_cannot_be_run(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["generate", "--device", "cpu", *options]) == 2
    printed = capsys.readouterr().out
    assert "generate: " in printed and message in " ".join(printed.split())


def test_a_model_that_the_reference_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model("Gemma2").save_pretrained(tmp_path)
    options = ["generate", *FEW, "--model", str(tmp_path)]
    assert main(options) == 0
    assert main([*options, "--check"]) == 2
    assert (
        "generate: sdpa: Gemma2ForCausalLM has soft caps; transformers' sdpa over a paged cache has none"
        in " ".join(capsys.readouterr().out.split())
    )


def test_the_rule() -> None:
    """In float32: another token of the same logit is right, the next best one is not."""
    model = make_model("Qwen2")
    prompts = make_prompts((6, 9))
    outputs = plain_outputs(model, prompts, 4)
    same = check_tokens(model, prompts, outputs, "sdpa")
    assert (same.num_tokens, same.num_largest, same.wrong) == (8, 8, [])
    token = outputs[1][3]
    twin = next(i for i in range(model.config.vocab_size) if i not in {*outputs[0], *outputs[1]})
    others = [outputs[0], [*outputs[1][:3], twin]]
    assert count_equal(others, outputs) == 7
    wrong = check_tokens(model, prompts, others, "sdpa")
    assert wrong.num_largest == 7
    assert [(token.request, token.position) for token in wrong.wrong] == [(1, 3)]
    with torch.no_grad():
        model.lm_head.weight[twin] = model.lm_head.weight[token]
    tied = check_tokens(model, prompts, others, "sdpa")
    assert tied.wrong == [] and tied.worst[1].gap <= tied.worst[1].bound < 1e-3


def run(*command: str) -> str:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_example() -> None:
    lines = run(str(ROOT / "examples/generate_transformers.py")).splitlines()
    assert re.fullmatch(r"288 tokens in \d+ steps, \d+ a second", lines[0])
    assert re.fullmatch(r"attention took \d+% of the time", lines[1])
    assert lines[2] == "288 of 288 tokens are equal to sdpa's"
    assert len(lines[3:]) == 4 and all(re.fullmatch(r"one more token: \d+", line) for line in lines[3:])


def test_as_a_user_starts_it() -> None:
    """Beside which no network is tried: HF_HUB_OFFLINE is set, and a hub is asked for nothing."""
    printed = run("-m", "onewave", "generate", *FEW[2:])
    assert "No GPU: " in printed and row(printed, "new tokens") == "15"
