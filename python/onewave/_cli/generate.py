"""A model of transformers' that generates with onewave's attention: continuous batching over a paged cache."""

import argparse
import time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

import onewave
from onewave._cli.generate_check import HIGHER, Check, Token, check_tokens, count_equal
from onewave._cli.generate_model import DTYPES, SHAPES, Loaded, load
from onewave._validate import check_int
from onewave.integrations.transformers import (
    MissingTransformers,
    Stopwatch,
    generate_batch,
    import_transformers,
)

REFERENCE = "sdpa"
# Of the progress bar.
REFRESH_S = 0.1
# Of a model with a tokenizer.
NUM_SHOWN_TEXTS = 3


class Generation(NamedTuple):
    """What a generation gave and took."""

    attention: str
    outputs: list[list[int]]
    stopwatch: Stopwatch


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="a causal language model of transformers' (default: a Qwen2 with random weights)",
    )
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="small",
        help="of a model with random weights (default: %(default)s)",
    )
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="texts that the model goes on from")
    parser.add_argument("--prompts", metavar="FILE", help="the same, one on each line")
    parser.add_argument(
        "--num-requests",
        type=int,
        metavar="N",
        help="default: 16 prompts of random tokens, or one for each text, which are taken again for more",
    )
    parser.add_argument(
        "--prompt-lens",
        type=int,
        nargs=2,
        default=(16, 256),
        metavar=("LEAST", "MOST"),
        help="tokens of a prompt of random tokens (default: 16 256)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], help="default: cuda where onewave can use a GPU, else cpu"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, or float32 on the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"generate with transformers' {REFERENCE} too, and hold each token against its logits",
    )


def run_generate(options: argparse.Namespace) -> int:
    """The exit status: 1 for tokens that rounding does not explain, 2 for what cannot be run."""
    console = Console()
    try:
        _check(options)
        device = _device(options.device, console)
        loaded = load(options, device)
    except (MissingTransformers, onewave.DeviceError, ValueError, TypeError, OSError) as error:
        console.print(f"generate: {error}", style="red", highlight=False, markup=False)
        return 2
    console.print(_describe(loaded), highlight=False, markup=False)
    generations = []
    for name in ["onewave", REFERENCE] if options.check else ["onewave"]:
        try:
            generations.append(_generate(loaded, name, options.max_new_tokens, console))
        except (NotImplementedError, ValueError, MemoryError, onewave.DeviceError) as error:
            console.print(f"generate: {name}: {error}", style="red", highlight=False, markup=False)
            return 2
    console.print(_table(loaded, generations))
    if loaded.tokenizer is not None:
        for prompt, output in list(zip(loaded.prompts, generations[0].outputs, strict=True))[
            :NUM_SHOWN_TEXTS
        ]:
            text = loaded.tokenizer.decode([*prompt, *output], skip_special_tokens=True)
            console.print(text, highlight=False, markup=False)
    if not options.check:
        return 0
    outputs, others = (generation.outputs for generation in generations)
    check = check_tokens(loaded.model, loaded.prompts, outputs, REFERENCE)
    _report(check, count_equal(outputs, others), loaded.model.dtype, console)
    return 1 if check.wrong else 0


def _check(options: argparse.Namespace) -> None:
    check_int("--max-new-tokens", options.max_new_tokens, 1)
    if options.num_requests is not None:
        check_int("--num-requests", options.num_requests, 1)
    least, most = options.prompt_lens
    if not 1 <= least <= most:
        raise ValueError(f"--prompt-lens is {least} {most}; it must be two lengths from 1, the smaller first")


def _device(name: str | None, console: Console) -> torch.device:
    """That onewave can use, said where it is not the one that was hoped for."""
    if name != "cpu":
        try:
            onewave.BatchAttention(device="cuda")
            return torch.device("cuda", torch.cuda.current_device())
        except onewave.DeviceError as error:
            if name is not None:
                raise
            console.print(f"No GPU: {error}", markup=False)
    return torch.device("cpu")


def _describe(loaded: Loaded) -> str:
    model, config = loaded.model, loaded.model.config.get_text_config()
    lens = [len(prompt) for prompt in loaded.prompts]
    return (
        f"{loaded.name}: {config.num_hidden_layers} layers, {config.num_attention_heads}/{config.num_key_value_heads} "
        f"heads, {str(model.dtype).removeprefix('torch.')}, {model.device.type}; {len(lens)} prompts of {min(lens)} to "
        f"{max(lens)} tokens"
    )


def _generate(loaded: Loaded, attention: str, max_new_tokens: int, console: Console) -> Generation:
    def config(num_tokens: int) -> Any:
        return import_transformers().GenerationConfig(
            do_sample=False, max_new_tokens=num_tokens, eos_token_id=loaded.eos_token_ids
        )

    # The first launches load kernels and make workspaces.
    generate_batch(loaded.model, loaded.prompts[:1], config(2), attention=attention)
    stopwatch = Stopwatch(loaded.model.device)
    num_requests = len(loaded.prompts)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.completed}/{task.total} tokens, {task.fields[done]} requests, {task.fields[rate]:.0f} tokens/s"
        ),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            attention, total=num_requests * max_new_tokens, done=f"0/{num_requests}", rate=0.0
        )
        lens = [0] * num_requests
        finished = 0
        begin = shown = time.perf_counter()

        def show(request: int, output: Any) -> None:
            # Some times a second: the thread that generates waits for what this one holds, Python's lock.
            nonlocal finished, shown
            lens[request] = len(output.generated_tokens)
            finished += output.is_finished()
            now = time.perf_counter()
            if finished == num_requests or now - shown > REFRESH_S:
                shown = now
                num_tokens = sum(lens)
                rate = num_tokens / (now - begin)
                progress.update(task, completed=num_tokens, done=f"{finished}/{num_requests}", rate=rate)

        outputs = generate_batch(
            loaded.model,
            loaded.prompts,
            config(max_new_tokens),
            attention=attention,
            stopwatch=stopwatch,
            on_output=show,
        )
        progress.update(task, total=sum(lens))
    return Generation(attention, outputs, stopwatch)


def _table(loaded: Loaded, generations: list[Generation]) -> Table:
    table = Table("", *(generation.attention for generation in generations), title="generate")
    of_each = [_figures(loaded, generation) for generation in generations]
    for name in of_each[0]:
        table.add_row(name, *(figures[name] for figures in of_each))
    return table


def _figures(loaded: Loaded, generation: Generation) -> dict[str, str]:
    stopwatch = generation.stopwatch
    total, parts = stopwatch.total_seconds, stopwatch.seconds()
    num_tokens = sum(map(len, generation.outputs))

    def share(seconds: float) -> str:
        return f"{seconds / total:.1%}, {seconds / stopwatch.num_steps * 1e6:.0f} us a step"

    return {
        "prompt tokens": f"{sum(map(len, loaded.prompts))}",
        "new tokens": f"{num_tokens}",
        "steps": f"{stopwatch.num_steps}",
        "time": f"{total:.3f} s",
        "throughput": f"{num_tokens / total:.1f} new tokens/s",
        "attention, of the time": share(sum(parts.values())),
        **{f"  {name}": share(parts[name]) if name in parts else "-" for name in ("plan", "append", "run")},
    }


def _report(check: Check, num_equal: int, dtype: torch.dtype, console: Console) -> None:
    higher = str(HIGHER[dtype]).removeprefix("torch.")
    lines = [
        f"{num_equal} of {check.num_tokens} tokens are equal to {REFERENCE}'s, up to a request's first difference",
        f"{check.num_largest} of {check.num_tokens} have the largest logit in {higher} by {REFERENCE} on the tokens before",
    ]
    for token in check.wrong:
        lines.append(f"request {token.request}, token {token.position}: {_describe_gap(token)}")
    if not check.wrong and check.num_largest < check.num_tokens:
        nearest = max(check.worst, key=lambda token: token.gap / token.bound)
        lines.append(f"of the others the worst is {_describe_gap(nearest)}")
    console.print("\n".join(lines), highlight=False)
    console.print("[red]The tokens are WRONG.[/]" if check.wrong else "[green]The tokens are right.[/]")


def _describe_gap(token: Token) -> str:
    return f"{token.gap:.2g} below the largest; rounding explains {token.bound:.2g}"
