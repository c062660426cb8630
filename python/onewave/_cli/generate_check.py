"""Whether two generations are the same one, as far as the rounding of their dtype lets it be told."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

HIGHER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


class Difference(NamedTuple):
    """Where two outputs of a request differ first."""

    request: int
    position: int  # among the new tokens
    gap: float  # between the reference's logits of the two tokens
    bound: float


class Comparison(NamedTuple):
    num_tokens: int
    num_equal: int  # those before the first difference of their request
    differences: list[Difference]

    @property
    def is_right(self) -> bool:
        return all(difference.gap <= difference.bound for difference in self.differences)


def compare(
    model: Any,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
) -> Comparison:
    """Tokens by greedy decoding of the model with onewave's attention and with the reference's.

    Where they differ, both had the same tokens before, and each took the larger of two logits by its own rounding. The
    reference's two logits, on these tokens, must then be as close as rounding explains: let e be the root mean square error
    of its logits there, against the same weights in the next wider dtype. Both computations round alike, so that four errors
    of that size, two in each, are between the two orders: a standard deviation of 2 e, of which four are allowed.
    """
    differences = []
    num_equal = 0
    higher: Any = None
    for request, (prompt, ours, theirs) in enumerate(zip(prompts, outputs, reference, strict=True)):
        position = _first_difference(ours, theirs)
        num_equal += position
        if position == max(len(ours), len(theirs)):
            continue
        if position == min(len(ours), len(theirs)):
            raise RuntimeError(f"request {request} ended after {len(ours)} tokens and {len(theirs)}")
        if higher is None:
            higher = copy.deepcopy(model).to(HIGHER[model.dtype])
        tokens = [*prompt, *ours[:position]]
        logits = _last_logits(model, tokens)
        error = (logits - _last_logits(higher, tokens)).square().mean().sqrt().item()
        gap = (logits[theirs[position]] - logits[ours[position]]).abs().item()
        differences.append(Difference(request, position, gap, 8 * error))
    return Comparison(sum(map(len, outputs)), num_equal, differences)


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (our, their) in enumerate(pairs) if our != their), min(len(ours), len(theirs)))


@torch.no_grad()
def _last_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """[vocab_size], by torch's SDPA."""
    model.set_attn_implementation("sdpa")
    has_option = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if has_option else {}
    logits: torch.Tensor = model(torch.tensor([tokens], device=model.device), **options).logits[0, -1]
    return logits.double()
