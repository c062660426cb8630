"""split_policy="fixed": a request's output bits are the same in every batch and at every place in it."""

import random

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import Outputs

LENS = [
    Lens(9000, 1, 2),
    Lens(1500, 1),
    Lens(3000, 5),
    Lens(700, 300),
    Lens(5000, 40),
    Lens(900, 8),
    Lens(33, 1),
    Lens(0, 2),
    Lens(20, 0),
    Lens(0, 0),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
Rows = list[torch.Tensor]


class Batches:
    """Requests of one cache, in any order and number."""

    def __init__(self, device: str, heads: Heads, page_size: int, split_policy: str) -> None:
        self.batch = DenseBatch(LENS, heads, torch.bfloat16, 11, device)
        self.paged = self.batch.paged(page_size)
        self.page_size, self.heads = page_size, heads
        self.attention = onewave.BatchAttention(
            device=device,
            max_batch_size=64,
            max_total_qo_len=1024,
            max_kv_len=9000,
            split_policy=split_policy,
        )
        self.num_requests = len(self.paged.kv_len_arr)
        self.q = self.batch.q.split(self.paged.qo_indptr.diff().tolist())
        self.pages = self.paged.kv_indices.split(self.paged.kv_indptr.diff().tolist())

    def run(self, requests: list[int], padding: int = 0) -> tuple[Rows, Rows]:
        """out and lse of each; `padding` requests of no tokens between them."""
        q_lens, page_lens, kv_lens = [0], [0], []
        for request in requests:
            q_lens += [len(self.q[request])] + [0] * padding
            page_lens += [len(self.pages[request])] + [0] * padding
            kv_lens += [int(self.paged.kv_len_arr[request])] + [0] * padding
        heads = self.heads
        self.attention.plan(
            torch.tensor(q_lens).cumsum(0).int(),
            torch.tensor(page_lens).cumsum(0).int(),
            torch.cat([self.pages[request] for request in requests]),
            torch.tensor(kv_lens).int(),
            *(heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, heads.head_dim),
            self.page_size,
            causal=True,
        )
        out, lse = self.attention.run(torch.cat([self.q[i] for i in requests]), self.paged.kv_cache)
        assert lse is not None
        lens = [len(self.q[request]) for request in requests]
        return list(out.split(lens)), list(lse.split(lens))


def differing(batches: Batches, draw: random.Random, num_batches: int) -> set[int]:
    """Requests whose bits are not those that they have alone."""
    alone = {request: batches.run([request]) for request in range(batches.num_requests)}
    found = set()
    for _ in range(num_batches):
        requests = draw.sample(range(batches.num_requests), draw.randint(1, batches.num_requests))
        requests += draw.choices(range(batches.num_requests), k=draw.randint(0, 20))
        out, lse = batches.run(requests, padding=draw.randint(0, 1))
        for place, request in enumerate(requests):
            (own_out,), (own_lse,) = alone[request]
            if not (torch.equal(out[place], own_out) and torch.equal(lse[place], own_lse)):
                found.add(request)
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("head_dim", "page_size"), [(64, 1), (128, 16), (128, 1), (64, 16)])
def test_bits_do_not_depend_on_the_batch(device: str, head_dim: int, page_size: int) -> None:
    num_batches = 25 if device == "cuda" else 2
    heads = Heads(2 if device == "cpu" else 4, 4, head_dim)
    assert not differing(Batches(device, heads, page_size, "fixed"), random.Random(1), num_batches)


@pytest.mark.gpu
def test_they_do_with_balanced_splits() -> None:
    """What the test above would find."""
    assert differing(Batches("cuda", Heads(4, 4, 128), 16, "balanced"), random.Random(1), 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_fixed_splits_are_right(device: str, page_size: int) -> None:
    batches = Batches(device, Heads(2, 4, 128), page_size, "fixed")
    out, lse = batches.run(list(range(batches.num_requests)))
    outputs = Outputs(batches.batch, num_extra_rows=0)
    outputs.out, outputs.lse = torch.cat(out), torch.cat(lse)
    outputs.check(batches.batch.expected(True))
