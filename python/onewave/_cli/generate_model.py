"""The model and the prompts of `generate`: the user's, or random ones where no weights are at hand."""

import argparse
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onewave.integrations.transformers import import_transformers

# Of Qwen2.5, but for `small`, whose scores are large enough that attention decides its tokens.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "initializer_range": 0.06,
    },
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Loaded(NamedTuple):
    """A model, what it shall go on from, and what to write its tokens with, if anything."""

    name: str
    model: Any
    tokenizer: Any
    prompts: list[list[int]]
    eos_token_ids: Any  # -1: none


def load(options: argparse.Namespace, device: torch.device) -> Loaded:
    """Raises ValueError for options that do not fit each other, and what transformers raises for a model."""
    dtype = DTYPES[options.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    if dtype == torch.float32 and device.type == "cuda":
        raise ValueError("--dtype is float32; it must be bfloat16 or float16 on a GPU")
    texts = _read_prompts(options)
    if texts and options.model is None:
        raise ValueError("--prompt and --prompts need --model: a randomly initialised model has no tokenizer")
    if options.model is None:
        name = f"randomly initialised Qwen2, shape {options.shape}"
        model, tokenizer = make_model(options.shape, dtype, device, options.seed), None
        eos_token_ids = -1
    else:
        transformers = import_transformers()
        name = options.model
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model) if texts else None
        eos_token_ids = model.generation_config.eos_token_id
        eos_token_ids = -1 if eos_token_ids is None else eos_token_ids
    if tokenizer is None:
        vocab_size = model.config.get_text_config().vocab_size
        num_requests = options.num_requests or 16
        prompts = random_prompts(num_requests, options.prompt_lens, vocab_size, options.seed)
    else:
        num_requests = options.num_requests or len(texts)
        prompts = [tokenizer(texts[i % len(texts)])["input_ids"] for i in range(num_requests)]
    return Loaded(name, model.eval(), tokenizer, prompts, eos_token_ids)


def make_model(shape: str, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """A Qwen2 with random weights, the same for a seed and device; nothing is fetched."""
    transformers = import_transformers()
    config = transformers.Qwen2Config(
        **SHAPES[shape], max_position_embeddings=32768, tie_word_embeddings=False, dtype=dtype
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def random_prompts(num_requests: int, lens: tuple[int, int], vocab_size: int, seed: int) -> list[list[int]]:
    """Token ids; lengths from the first to the second of `lens`."""
    generator = random.Random(seed)
    return [
        [generator.randrange(vocab_size) for _ in range(generator.randint(*lens))]
        for _ in range(num_requests)
    ]


def _read_prompts(options: argparse.Namespace) -> list[str]:
    if options.prompt and options.prompts:
        raise ValueError("give --prompt or --prompts, not both")
    if options.prompts is None:
        return list(options.prompt or [])
    lines = [line for line in Path(options.prompts).read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{options.prompts} has no prompt: one on each line")
    return lines
