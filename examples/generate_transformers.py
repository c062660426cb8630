"""A model of Hugging Face transformers generates for many requests at once, with onewave's attention.

    python3 -m pip install 'onewave[generate]'
    python3 examples/generate_transformers.py                             # a small Qwen2 with random weights
    python3 examples/generate_transformers.py Qwen/Qwen2.5-0.5B-Instruct  # or a directory

transformers schedules the requests and keeps the paged cache; onewave computes a step's attention, prompts and decodes
together, over that cache in place.
"""

import sys

import torch
from onewave.integrations.transformers import Stopwatch, continuous_batching, generate_batch, make_config
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config

NUM_REQUESTS = 12
MAX_NEW_TOKENS = 24
TEXTS = ("The capital of France is", "Attention is all", "A page table maps", "Once upon a time")


def make_model(name: str | None, device: str, dtype: torch.dtype) -> tuple[torch.nn.Module, list[list[int]]]:
    """The model and its prompts, as token ids; without a name nothing is fetched."""
    torch.manual_seed(0)
    if name is not None:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        prompts = [tokenizer(TEXTS[i % len(TEXTS)])["input_ids"] for i in range(NUM_REQUESTS)]
    else:
        config = Qwen2Config(
            vocab_size=1024,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.08,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        lens = torch.randint(8, 200, (NUM_REQUESTS,)).tolist()
        prompts = [torch.randint(config.vocab_size, (length,)).tolist() for length in lens]
    return model.to(device).eval(), prompts


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a CPU in float32, in which both attentions give the same tokens; in bfloat16 near-ties go either way.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, prompts = make_model(sys.argv[1] if len(sys.argv) > 1 else None, device, dtype)
    generation_config = GenerationConfig(do_sample=False, max_new_tokens=MAX_NEW_TOKENS)

    stopwatch = Stopwatch(model.device)
    outputs = generate_batch(model, prompts, generation_config, stopwatch=stopwatch)
    num_tokens = sum(map(len, outputs))
    attention = sum(stopwatch.seconds().values()) / stopwatch.total_seconds
    print(
        f"{num_tokens} tokens in {stopwatch.num_steps} steps, {num_tokens / stopwatch.total_seconds:.0f} a second"
    )
    print(f"attention took {attention:.0%} of the time")

    # The same requests with torch's attention, which gathers each request's keys and values in every step.
    reference = generate_batch(model, prompts, generation_config, attention="sdpa")
    pairs = zip(outputs, reference, strict=True)
    num_equal = sum(a == b for output, other in pairs for a, b in zip(output, other, strict=False))
    print(f"{num_equal} of {num_tokens} tokens are equal to sdpa's")

    # A server adds requests while others are under way, and has their tokens one by one.
    config = make_config(model, prompts[:1], MAX_NEW_TOKENS)
    with continuous_batching(model, generation_config, config) as manager:
        manager.add_request(prompts[0], max_new_tokens=4, streaming=True)
        for output in manager:
            print("one more token:", output.generated_tokens[-1])
            if output.is_finished():
                break


if __name__ == "__main__":
    main()
