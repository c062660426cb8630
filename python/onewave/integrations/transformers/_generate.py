"""transformers' continuous batching with onewave's attention, or with one of transformers' own to compare it with."""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from onewave._validate import check_int
from onewave.integrations.transformers._cache import is_paged_cache
from onewave.integrations.transformers._dense import attention_forward
from onewave.integrations.transformers._library import import_transformers
from onewave.integrations.transformers._paged import PagedAttention, paged_attention_forward
from onewave.integrations.transformers._stopwatch import Stopwatch

NAME = "onewave"
PAGED_NAME = "onewave_paged"
# Attention functions of transformers', beside onewave's.
REFERENCES = ("sdpa", "eager")


def register() -> None:
    """Adds "onewave" to transformers' attention functions: for `attn_implementation="onewave"`, in plain forward passes and
    generate(). May be called again.

    Such a model computes what it computes with "sdpa" or, with soft caps and sinks, "eager": in inference alone, and without
    torch.compile, which generate() uses by itself for a static cache on a GPU (`disable_compile=True` of its configuration
    keeps it from that). K and V are read in place, one token a page. Where transformers makes a mask (padding, sliding
    windows, static caches), the host reads it once a forward pass, bit by bit: continuous_batching() is for more than a few
    sequences.

    Raises MissingTransformers, an ImportError, where transformers is missing or too old.
    """
    modeling, masking = import_transformers("modeling_utils"), import_transformers("masking_utils")
    modeling.AttentionInterface.register(NAME, attention_forward)
    # No mask is made for the other name.
    masking.AttentionMaskInterface.register(NAME, masking.sdpa_mask)
    modeling.AttentionInterface.register(PAGED_NAME, paged_attention_forward)


@contextmanager
def continuous_batching(
    model: Any,
    generation_config: Any = None,
    continuous_batching_config: Any = None,
    *,
    attention: str = NAME,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Any]:
    """A started ContinuousBatchingManager of transformers' for `model`, whose attention is onewave's over its paged cache.

    Layers of full attention are read and written in place, in pages of the configuration's page_size; those of a sliding
    window, whose cache is a ring, are gathered by transformers first. A step is planned once for each kind of layers.

    model: a causal language model of transformers', on a Hopper GPU or the CPU. Inside, it generates for this manager alone;
        afterwards its attn_implementation is what it was.
    generation_config, continuous_batching_config: transformers', or None for its defaults. Without CUDA graphs,
        asynchronous batching and torch.compile, which onewave does not support here: asked for, they are an error.
    attention: "onewave", or "sdpa" or "eager" for transformers' own.
    stopwatch: takes the times of attention.

    Raises MissingTransformers, ValueError for arguments, and what transformers raises, such as MemoryError for a cache that
    does not fit. What a step raised is in the outputs of all requests, and raised at the end.
    """
    register()
    if attention not in (NAME, *REFERENCES):
        raise ValueError(f"attention is {attention!r}; it must be one of {', '.join((NAME, *REFERENCES))}")
    if getattr(model, "_cached_continuous_batching_manager", None) is not None:
        raise ValueError(
            "model keeps a manager of its own; call model.destroy_cached_continuous_batching_manager() first"
        )
    config = _check_config(continuous_batching_config)
    generation_config = copy.copy(generation_config or model.generation_config)
    if generation_config.eos_token_id is None:
        generation_config.eos_token_id = -1
    before = model.config._attn_implementation
    # What the manager lets pass in every version, and does not replace by another.
    model.set_attn_implementation("paged|eager")
    try:
        manager = model.init_continuous_batching(generation_config, config)
        with _attention(model, attention, stopwatch):
            # Here, for its errors: the cache is made.
            manager.warmup()
            manager.start()
            try:
                yield manager
            except BaseException:
                manager.stop(hard_stop=True)
                raise
            else:
                manager.stop()
            finally:
                manager.destroy()
            if manager.background_thread_status.fatal_error is not None:
                raise manager.background_thread_status.fatal_error
    finally:
        model.set_attn_implementation(before)


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    generation_config: Any = None,
    continuous_batching_config: Any = None,
    *,
    attention: str = NAME,
    stopwatch: Stopwatch | None = None,
    on_output: Callable[[int, Any], None] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, in their order, by continuous_batching(); prompts are lists of token ids.

    generation_config: has a max_new_tokens; None: the model's.
    on_output: called with a prompt's index and transformers' GenerationOutput for each new token.
    continuous_batching_config: None: transformers' defaults with a cache for these prompts, or, where that takes more than half
        of a GPU's free memory, for as many as transformers finds room for.

    Raises ValueError and TypeError for arguments, and what continuous_batching() and a step raise.
    """
    if not prompts or not all(len(prompt) > 0 for prompt in prompts):
        raise ValueError("prompts has no prompt or an empty one; each must have a token or more")
    generation_config = generation_config or model.generation_config
    check_int("generation_config.max_new_tokens", generation_config.max_new_tokens, 1)
    if generation_config.num_return_sequences not in (None, 1):
        raise ValueError(
            f"num_return_sequences is {generation_config.num_return_sequences}; it must be 1: repeat the prompt for more"
        )
    if continuous_batching_config is None:
        continuous_batching_config = make_config(model, prompts, generation_config.max_new_tokens)
    outputs: dict[str, Any] = {}
    with continuous_batching(
        model, generation_config, continuous_batching_config, attention=attention, stopwatch=stopwatch
    ) as manager:
        request_ids = manager.add_requests(
            [list(prompt) for prompt in prompts],
            max_new_tokens=generation_config.max_new_tokens,
            streaming=on_output is not None,
        )
        index_of = {request_id: index for index, request_id in enumerate(request_ids)}
        while len(outputs) < len(prompts) and manager.is_running():
            output = manager.get_result(timeout=0.1)
            if output is None:
                continue
            if output.error is None and on_output is not None:
                on_output(index_of[output.request_id], output)
            if output.is_finished():
                outputs[output.request_id] = output
        if stopwatch is not None:
            stopwatch.end()
    failed = [output.error for output in outputs.values() if output.error is not None]
    if failed or len(outputs) < len(prompts):
        raise RuntimeError(f"generation ended before all requests were done: {failed[:1]}")
    return [list(outputs[request_id].generated_tokens) for request_id in request_ids]


def make_config(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, page_size: int = 256, **options: Any
) -> Any:
    """A ContinuousBatchingConfig whose cache holds these prompts and what follows, or, where that is more than half of a
    GPU's free memory, as much as transformers finds room for. `options`: other fields of it. A page is best a power of two
    from 8 up."""
    config = import_transformers("generation.configuration_utils").ContinuousBatchingConfig
    # Its name until 5.17.
    page_option = "page_size" if "page_size" in _names_of(config) else "block_size"
    num_pages = sum(-(-(len(prompt) + max_new_tokens) // page_size) for prompt in prompts)
    text = model.config.get_text_config()
    if not _is_large(model, num_pages * page_size):
        # In 5.17 a block is of as many layers as the type with fewest has, if that divides the others.
        counts = Counter(getattr(text, "layer_types", None) or [""]).values()
        num_groups = sum(counts) // math.gcd(*counts)
        # transformers takes no new requests where a fifth or less is free.
        options.setdefault("num_blocks", num_pages * num_groups * 5 // 4 + num_groups)
        # transformers' default, which 5.17 makes as large as the memory where num_blocks is given.
        options.setdefault("max_batch_tokens", min(8192, sum(map(len, prompts))))
    return config(**{page_option: page_size}, **options)


def _names_of(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _is_large(model: Any, num_tokens: int) -> bool:
    """Whether the cache of so many tokens is more than half of a GPU's free memory."""
    if model.device.type != "cuda":
        return False
    text = model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    num_bytes = num_tokens * text.num_hidden_layers * 2 * num_kv_heads * head_dim * model.dtype.itemsize
    return bool(num_bytes > torch.cuda.mem_get_info(model.device)[0] // 2)


def _check_config(config: Any) -> Any:
    """A copy of a ContinuousBatchingConfig without what onewave does not support."""
    config = (
        import_transformers("generation.configuration_utils").ContinuousBatchingConfig()
        if config is None
        else copy.copy(config)
    )
    for name in (
        "use_cuda_graph",
        "use_async_batching",
        "default_compile_level",
        "varlen_compile_config",
        "decode_compile_config",
    ):
        value = getattr(config, name, None)
        if value not in (None, False, 0, (False, False)):
            raise NotImplementedError(
                f"{name} is {value!r}; onewave plans each step outside graphs, so it must be None or False"
            )
    config.use_cuda_graph = config.use_async_batching = False
    if "auto_switch_to_flash" in _names_of(config):
        config.auto_switch_to_flash = False
    return config


@contextmanager
def _attention(model: Any, attention: str, stopwatch: Stopwatch | None) -> Iterator[None]:
    """Makes it the model's: from the manager on, which has other names for what it knows."""
    functions = import_transformers("modeling_utils").ALL_ATTENTION_FUNCTIONS
    if attention == NAME:
        paged = PagedAttention(stopwatch)
        model.set_attn_implementation(PAGED_NAME)
        handle = model.register_forward_pre_hook(paged.begin_step, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        return
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        # Some versions leave them out without a word.
        raise NotImplementedError(
            f"{type(model).__name__} has soft caps; transformers' {attention} over a paged cache has none"
        )
    # Without the prefix from 5.19 on.
    name = next(name for name in (f"paged|{attention}", attention) if name in functions)
    model.set_attn_implementation(name)
    if stopwatch is None:
        yield
        return
    handle = model.register_forward_pre_hook(_TimedUpdate(stopwatch), with_kwargs=True)
    functions[name] = _timed(stopwatch, "run", functions[name])
    try:
        yield
    finally:
        del functions[name]
        handle.remove()


class _TimedUpdate:
    """A forward pre-hook that has the time of transformers' updates of its cache taken."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not is_paged_cache(kwargs.get("cache")):
            return
        self._stopwatch.begin_step()
        cache = kwargs["cache"]
        if "update" not in vars(cache):
            cache.update = _timed(self._stopwatch, "append", cache.update)


def _timed(stopwatch: Stopwatch, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with stopwatch.span(name):
            return function(*args, **kwargs)

    return timed
