"""Small random models of transformers', and what they generate by plain generate(), request by request."""

import gc
import os
from typing import Any

import torch
from needs import needed_module

# Before the first import of it.
os.environ["HF_HUB_OFFLINE"] = "1"
transformers = needed_module("transformers")
# transformers collects garbage after each generation; what is imported is none.
gc.freeze()

VOCAB_SIZE = 384
WINDOW = 24
# Names of transformers', and what is special about them.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen2 with windows": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    # Windows in all layers, and so no full attention in the cache.
    "Mistral": {"sliding_window": WINDOW},
    # Soft caps, and scores that are not scaled by the head_dim.
    "Gemma2": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 4.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    # Sinks; all experts are taken, so that rounding changes no choice of them.
    "GptOss": {"num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": WINDOW},
}


def make_model(
    name: str, dtype: torch.dtype = torch.float32, device: str = "cpu", head_dim: int = 32, seed: int = 0
) -> Any:
    """Three or four layers of 4 query heads and 2 kv heads; weights so large that attention decides the tokens."""
    kind = name.split()[0]
    options = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 4 * head_dim,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "initializer_range": 1.4 * (4 * head_dim) ** -0.5,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    config = getattr(transformers, f"{kind}Config")(**{**options, **MODELS[name]})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "sinks"):
            torch.nn.init.normal_(layer.self_attn.sinks)
    # Without the end-of-sequence tokens of the real ones.
    model.generation_config = transformers.GenerationConfig()
    return model.to(device, dtype).eval()


def make_prompts(lens: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lens]


def greedy(num_tokens: int) -> Any:
    return transformers.GenerationConfig(do_sample=False, max_new_tokens=num_tokens)


def plain_outputs(model: Any, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """One request after another, by the model's own attention and a cache without pages."""
    model.set_attn_implementation("eager")
    return [
        model.generate(torch.tensor([prompt]), generation_config=greedy(num_tokens))[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]
