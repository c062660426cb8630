"""A sampled product of all that the README's table says is supported, against float32: on the GPU, and less of it by the
executor on the CPU."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Masks, ScaleForm, as_scale_argument
from gpu_checks import Outputs, plan, run_twice
from onewave import _core
from plan_checks import CALIBRATION_FILE

pytestmark = pytest.mark.usefixtures("float32_means_float32")

# Cases of one test, so that a failure names few.
CASES_EACH = 128
FP8, CORE_FP8 = torch.float8_e4m3fn, _core.DType.FLOAT8_E4M3
# Of q and k, of v and out, and whether a cache is of fp8, and queries.
ROWS = sorted(
    {
        (row.head_dim_qk, row.head_dim_vo, row.kv_dtype == CORE_FP8, row.dtype == CORE_FP8)
        for row in _core.list_kernels()
    }
)
# Of the head_dims whose kernels take scales of groups of tokens.
MAX_SCALED_HEAD_DIM = 128


def cat_bits(masks: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([mask.flatten() for mask in masks]) if masks else torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True)
class Case:
    lens: list[Lens]
    heads: Heads
    dtype: torch.dtype
    kv_dtype: torch.dtype
    out_dtype: torch.dtype
    scales: tuple[ScaleForm, ScaleForm, ScaleForm]  # of k, v and q
    page_size: int
    layout: str
    causal: str  # yes, no, or by request
    windows: tuple[int, ...]
    soft_cap: float
    has_sinks: bool
    custom_mask: str  # none, random, tree: after the first keys which all see
    split_policy: str
    prefix_groups: list[tuple[int, int, int]]
    num_ctas: int
    seed: int

    def masks(self, draw: random.Random, generator: torch.Generator) -> Masks:
        requests = [group for group in self.lens for _ in range(group.count)]
        causal = {"yes": True, "no": False}.get(self.causal, [draw.random() < 0.5 for _ in requests])
        sinks = torch.randn(self.heads.num_qo_heads, generator=generator) * 2 + 3 if self.has_sinks else None
        custom = None
        if self.custom_mask != "none":
            custom = [draw_custom_mask(group, self.custom_mask, draw, generator) for group in requests]
        return Masks(causal, -1, self.soft_cap, sinks, custom)

    def run(self, device: str) -> None:
        batch = DenseBatch(
            self.lens, self.heads, self.dtype, self.seed, device, self.kv_dtype, self.out_dtype
        )
        batch.share(self.prefix_groups)
        # Scores of the size at which a cap does something.
        batch.scale_queries(max(self.soft_cap, 1))
        paged = batch.paged(self.page_size, self.layout)
        kv_layout = "HND" if self.layout == "HND" else "NHD"
        draw = random.Random(self.seed)
        masks = self.masks(draw, torch.Generator().manual_seed(self.seed))
        attention = onewave.BatchAttention(
            kv_layout,
            device,
            max_batch_size=64,
            max_total_qo_len=4096,
            max_kv_len=16384,
            num_ctas=self.num_ctas,
            split_policy=self.split_policy,
            num_windows=len(self.windows),
            max_shared_qo_len=4096,
            calibration=CALIBRATION_FILE,
        )
        outputs = Outputs(batch)
        scales = [batch.draw_scale(form, paged, self.page_size, kv_layout) for form in self.scales]
        k_scale, v_scale, q_scale = (
            as_scale_argument(form, scale, device) for form, scale in zip(self.scales, scales, strict=True)
        )
        dequantised = batch.dequantised(*scales)
        custom = {} if masks.custom is None else {"custom_mask": cat_bits(masks.custom)}  # type: ignore[arg-type]
        causal = (
            masks.causal if isinstance(masks.causal, bool) else torch.tensor(masks.causal, dtype=torch.bool)
        )
        plan(
            attention,
            batch,
            paged,
            self.page_size,
            causal,
            window_left=self.windows,
            logits_soft_cap=self.soft_cap,
            prefix_groups=self.prefix_groups,
            **custom,
        )
        sinks = None if masks.sinks is None else masks.sinks.to(device)
        for i, window_left in enumerate(self.windows):
            run_twice(
                attention,
                outputs,
                paged,
                window=i,
                sinks=sinks,
                k_scale=k_scale,
                v_scale=v_scale,
                q_scale=q_scale,
            )
            outputs.check(dequantised.expected(replace(masks, window_left=window_left)))


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


def draw_prefix_groups(
    draw: random.Random, lens: list[Lens], first_sees_itself: bool
) -> list[tuple[int, int, int]]:
    """One or two levels, of as many keys as all queries see, causal or by a tree."""
    seen = [
        min(max(group.kv_len - group.qo_len + first_sees_itself, 0), group.kv_len)
        for group in lens
        for _ in range(group.count)
    ]
    groups = []
    begin, end = 0, len(seen)
    for _ in range(draw.randint(1, 2)):
        begin = draw.randint(begin, end - 1)
        end = draw.randint(begin + 1, end)
        most = min(seen[begin:end])
        groups.append((begin, end, draw.choice([most, draw.randint(0, most)])))
    return groups


def draw_custom_mask(group: Lens, kind: str, draw: random.Random, generator: torch.Generator) -> torch.Tensor:
    """[qo_len, kv_len]; of the random ones whole tiles are all seen, or by nobody."""
    if kind == "tree":
        mask = torch.ones(group.qo_len, group.kv_len, dtype=torch.bool)
        begin = max(group.kv_len - group.qo_len, 0)
        mask[:, begin:] = torch.rand(mask[:, begin:].shape, generator=generator) < 0.5
        return mask
    mask = torch.rand(group.qo_len, group.kv_len, generator=generator) < draw.random()
    for begin in range(0, group.kv_len, 128):
        if draw.random() < 0.6:
            mask[:, begin : begin + 128] = draw.random() < 0.5
    return mask


SCALE_FORMS: list[ScaleForm] = [None, "float", "tensor", "head"]


def draw_scales(draw: random.Random, page_size: int) -> tuple[ScaleForm, ScaleForm]:
    """Of k and v; of groups of tokens if there is a page_size."""
    divisors = [groups for groups in range(1, page_size + 1) if page_size % groups == 0]
    return tuple(
        draw.choice(divisors) if divisors and draw.random() < 0.4 else draw.choice(SCALE_FORMS)
        for _ in range(2)
    )  # type: ignore[return-value]


def draw_case(draw: random.Random, max_kv_len: int, max_num_ctas: int) -> Case:
    head_dim, head_dim_vo, is_fp8, has_fp8_queries = draw.choice(ROWS)
    out_dtype, page_size = draw.choice([torch.bfloat16, torch.float16]), draw.choice([1, 3, 8, 16, 64, 256])
    dtype = FP8 if has_fp8_queries else out_dtype
    has_group_scales = not has_fp8_queries and head_dim_vo <= MAX_SCALED_HEAD_DIM
    scales = draw_scales(draw, page_size if has_group_scales else 0) if is_fp8 else (None, None)
    lens = draw_lens(draw, max_kv_len)
    split_policy = draw.choice(["balanced", "balanced", "fixed"])
    custom_mask = draw.choice(["none", "none", "none", "random", "tree"])
    # Fixed splits refuse prefixes, and so does a mask that hides their keys. One row's factor may be another's.
    may_share = (
        split_policy == "balanced"
        and custom_mask != "random"
        and not any(isinstance(form, int) for form in scales)
    )
    num_kv_heads, group_size = draw.choice([1, 2, 3, 4, 8]), draw.choice([1, 2, 4, 5, 8, 16])
    layouts = ["NHD", "HND", "pair", "strided"] if head_dim == head_dim_vo else ["pair", "strided"]
    return Case(
        lens=lens,
        heads=Heads(num_kv_heads, group_size, head_dim, head_dim_vo),
        dtype=dtype,
        kv_dtype=FP8 if is_fp8 else dtype,
        out_dtype=out_dtype,
        scales=(*scales, draw.choice(SCALE_FORMS) if has_fp8_queries else None),
        page_size=page_size,
        layout=draw.choice(layouts),
        causal=draw.choice(["yes", "yes", "yes", "no", "by request"]),
        windows=draw.choice([(-1,), (-1,), (-1, draw.randint(0, 400)), (draw.choice([0, 127, 128, 1000]),)]),
        soft_cap=draw.choice([0.0, 0.0, 0.0, 1.0, 5.0]),
        has_sinks=draw.random() < 0.25,
        custom_mask=custom_mask,
        split_policy=split_policy,
        prefix_groups=draw_prefix_groups(draw, lens, custom_mask == "none")
        if may_share and draw.random() < 0.7
        else [],
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
