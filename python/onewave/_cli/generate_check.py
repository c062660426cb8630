"""Whether the tokens of a generation are the model's, as far as the rounding of their dtype lets it be told."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

HIGHER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


class Token(NamedTuple):
    """A new token of a request, and its logit."""

    request: int
    position: int  # among the new tokens
    gap: float  # down from the largest logit
    bound: float  # what rounding explains of that


class Check(NamedTuple):
    num_tokens: int
    num_largest: int  # those with the largest logit
    worst: list[Token]  # of each request, by their gaps

    @property
    def wrong(self) -> list[Token]:
        return [token for token in self.worst if token.gap > token.bound]


@torch.no_grad()
def check_tokens(
    model: Any, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], attention: str
) -> Check:
    """Tokens of greedy decoding, by the logits of the model with transformers' own `attention` on the tokens before each,
    in the next wider dtype: a token's is the largest, or lower by no more than rounding explains.

    Let e be the root mean square error of a request's logits in the model's dtype. Two logits with errors of that size are
    in the wrong order by 8 e, which are 5.7 standard deviations of their difference, in none of a million tokens.

    Cost: a copy of the model in the wider dtype, and a forward pass of both for each request.
    """
    higher = copy.deepcopy(model).to(HIGHER[model.dtype])
    num_largest = 0
    worst = []
    for request, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        tokens = [*prompt, *output[:-1]]
        exact = _last_logits(higher, tokens, len(output), attention)
        error = (_last_logits(model, tokens, len(output), attention) - exact).square().mean().sqrt().item()
        chosen = exact.gather(1, torch.tensor(output, device=exact.device)[:, None])[:, 0]
        gaps = exact.amax(1) - chosen
        position = int(gaps.argmax())
        num_largest += int((gaps == 0).sum())
        worst.append(Token(request, position, gaps[position].item(), 8 * error))
    return Check(sum(map(len, outputs)), num_largest, worst)


def count_equal(outputs: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """The tokens before the first difference of each request: behind it there is another text."""
    return sum(_first_difference(ours, theirs) for ours, theirs in zip(outputs, others, strict=True))


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (our, their) in enumerate(pairs) if our != their), min(len(ours), len(theirs)))


def _last_logits(model: Any, tokens: list[int], num: int, attention: str) -> torch.Tensor:
    """float64 [num, vocab_size], behind the last `num` tokens."""
    model.set_attn_implementation(attention)
    has_option = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": num} if has_option else {}
    logits: torch.Tensor = model(torch.tensor([tokens], device=model.device), **options).logits[0, -num:]
    return logits.double()
