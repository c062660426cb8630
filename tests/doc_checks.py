"""What the Python of a page must have computed, by its names: against plain attention, without cache, pages or steps."""

from collections.abc import Callable
from typing import Any

import torch
from reference import attend

MAX_BF16_ERROR = 0.02
# Of two layers in bf16; the largest of 1000 random logits is some 3 standard deviations, of 1 each.
MAX_LOGIT_ERROR = 0.1
# Half a step of e4m3's three bits of mantissa.
FP8_ROUNDING = 2.0**-4


def check_tutorial(names: dict[str, Any]) -> None:
    """Each token that the loop chose has the largest logit, or nearly, of a computation without cache, pages or steps."""
    assert sorted(names["free_pages"]) == list(range(names["num_pages"]))
    prompt_lens = dict(zip(names["wanted_lens"], names["prompt_lens"], strict=True))
    assert sorted(len(request.tokens) for request in names["finished"]) == sorted(prompt_lens)
    for request in names["finished"]:
        logits = dense_logits(names, request.tokens)
        for position in range(prompt_lens[len(request.tokens)], len(request.tokens)):
            chosen, largest = logits[position - 1, request.tokens[position]], logits[position - 1].max()
            assert chosen >= largest - MAX_LOGIT_ERROR, f"token {position} of {len(request.tokens)}"
    check_fp8(names)


def dense_logits(names: dict[str, Any], tokens: list[int]) -> torch.Tensor:
    """The tutorial's model in float32: [token, vocab_size]."""
    heads = (names["num_qo_heads"], names["num_kv_heads"], names["num_kv_heads"])

    def project(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden, hidden.shape[1:]) @ weight.float().cpu().T

    hidden = names["embedding"].float().cpu()[tokens]
    for qkv_weight, out_weight in zip(names["qkv_weights"], names["out_weights"], strict=True):
        qkv = project(hidden, qkv_weight).view(len(tokens), -1, names["head_dim"])
        out = dense_attention(*qkv.split(heads, dim=1), causal=True)
        hidden = hidden + out.flatten(1) @ out_weight.float().cpu().T
    return project(hidden, names["unembedding"])


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Of one request: rows as [token, head, column]."""
    k, v = (rows.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for rows in (k, v))
    out, _ = attend(*(rows.transpose(0, 1) for rows in (q, k, v)), causal=causal, sm_scale=q.shape[2] ** -0.5)
    return out.transpose(0, 1)


def check_fp8(names: dict[str, Any]) -> None:
    q, k, v = (names[name].float().cpu() for name in ("q", "k", "v"))
    expected = dense_attention(q, k, v, causal=True)
    torch.testing.assert_close(names["out"].float().cpu(), expected, atol=0.1, rtol=FP8_ROUNDING)


def check_flash_attention(names: dict[str, Any]) -> None:
    """The page's step against plain attention, and its lse against FlashAttention's shape and base."""
    lse = names["softmax_lse"].cpu()
    assert lse.shape == (8, 21)
    for i, rows in enumerate((slice(0, 1), slice(1, 21))):
        k, v = (
            names[name][names["page_table"][i].to(names[name].device).long()].flatten(0, 1)
            for name in ("k_cache", "v_cache")
        )
        kv_len = int(names["seqused_k"][i])
        q, k, v = (x.float().cpu() for x in (names["q"][rows], k[:kv_len], v[:kv_len]))
        expected = dense_attention(q, k, v, causal=True)
        torch.testing.assert_close(names["out"][rows].float().cpu(), expected, atol=MAX_BF16_ERROR, rtol=0)
        scores = torch.einsum("qhd,kd->hqk", q[:, :4], k[:, 0]) * 128**-0.5
        hidden = torch.ones(len(q), kv_len, dtype=torch.bool).triu(kv_len - len(q) + 1)
        expected_lse = scores.masked_fill(hidden, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(lse[:4, rows], expected_lse, atol=1e-3, rtol=0)


def check_flashinfer(names: dict[str, Any]) -> None:
    """The decodes of the page, by the pages that its indices name."""
    kv_cache, q = names["kv_cache"].float().cpu(), names["q"].float().cpu()
    for i, (pages, kv_len) in enumerate((([7, 2, 4], 37), ([0, 1], 32))):
        k, v = (kv_cache[pages, part].flatten(0, 1)[:kv_len] for part in range(2))
        expected = dense_attention(q[i : i + 1], k, v, causal=False)
        torch.testing.assert_close(
            names["out_d"][i : i + 1].float().cpu(), expected, atol=MAX_BF16_ERROR, rtol=0
        )


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "tutorial_python.md": check_tutorial,
    "moving_from_flash_attention.md": check_flash_attention,
    "moving_from_flashinfer.md": check_flashinfer,
}
