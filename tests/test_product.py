"""A sampled product of all that the README's table says is supported, against float32: on the GPU, and less of it by the
executor on the CPU."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import Outputs, plan, run_twice
from onewave import _core
from plan_checks import CALIBRATION_FILE

pytestmark = pytest.mark.usefixtures("float32_means_float32")

# Cases of one test, so that a failure names few.
CASES_EACH = 128
HEAD_DIMS = sorted({(kernel.head_dim_qk, kernel.head_dim_vo) for kernel in _core.list_kernels()})


@dataclass(frozen=True)
class Case:
    lens: list[Lens]
    heads: Heads
    dtype: torch.dtype
    page_size: int
    layout: str
    causal: bool
    split_policy: str
    num_ctas: int
    seed: int

    def run(self, device: str) -> None:
        batch = DenseBatch(self.lens, self.heads, self.dtype, self.seed, device)
        paged = batch.paged(self.page_size, self.layout)
        attention = onewave.BatchAttention(
            "HND" if self.layout == "HND" else "NHD",
            device,
            max_batch_size=64,
            max_total_qo_len=4096,
            max_kv_len=16384,
            num_ctas=self.num_ctas,
            split_policy=self.split_policy,
            calibration=CALIBRATION_FILE,
        )
        outputs = Outputs(batch)
        plan(attention, batch, paged, self.page_size, self.causal)
        run_twice(attention, outputs, paged)
        outputs.check(batch.expected(self.causal))


def draw_lens(draw: random.Random, max_kv_len: int) -> list[Lens]:
    """A few requests of each kind; one in ten has no queries, no keys, or neither."""
    kinds: list[Callable[[], Lens]] = [
        lambda: Lens(draw.randint(1, max_kv_len), 1, draw.randint(1, 5)),
        lambda: Lens(draw.randint(1, max_kv_len), draw.randint(2, 8), draw.randint(1, 3)),
        lambda: Lens(draw.randint(1, max_kv_len), draw.randint(9, 200)),
        lambda: Lens(draw.randint(1, 300), draw.randint(1, 300)),
    ]
    lens = []
    for _ in range(draw.randint(1, 4)):
        request = draw.choice(kinds)()
        if draw.random() < 0.1:
            request = Lens(*draw.choice([(request.kv_len, 0), (0, request.qo_len), (0, 0)]))
        lens.append(request)
    return lens


def draw_case(draw: random.Random, max_kv_len: int, max_num_ctas: int) -> Case:
    head_dim, head_dim_vo = draw.choice(HEAD_DIMS)
    num_kv_heads, group_size = draw.choice([1, 2, 3, 4, 8]), draw.choice([1, 2, 4, 5, 8, 16])
    layouts = ["NHD", "HND", "pair", "strided"] if head_dim == head_dim_vo else ["pair", "strided"]
    return Case(
        lens=draw_lens(draw, max_kv_len),
        heads=Heads(num_kv_heads, group_size, head_dim, head_dim_vo),
        dtype=draw.choice([torch.bfloat16, torch.float16]),
        page_size=draw.choice([1, 3, 8, 16, 64, 256]),
        layout=draw.choice(layouts),
        causal=draw.random() < 0.7,
        split_policy=draw.choice(["balanced", "balanced", "fixed"]),
        num_ctas=draw.randint(1, max_num_ctas),
        seed=draw.getrandbits(31),
    )


def check_cases(
    seed: int, part: int, device: str, num_cases: int, max_kv_len: int, max_num_ctas: int
) -> None:
    draw = random.Random(f"{seed} {part}")
    for i in range(num_cases):
        case = draw_case(draw, max_kv_len, max_num_ctas)
        try:
            case.run(device)
        except AssertionError as error:
            pytest.fail(f"case {i} of ONEWAVE_TEST_SEED={seed}, {case}: {error}")


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(20))
def test_on_the_gpu(part: int, seed: int, record_property: Callable[[str, object], None]) -> None:
    check_cases(seed, part, "cuda", CASES_EACH, 3000, 132)
    record_property("cases", CASES_EACH)


def test_on_the_cpu(seed: int) -> None:
    check_cases(seed, 0, "cpu", CASES_EACH // 2, 600, 40)
