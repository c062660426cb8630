"""A cache of fp8 beside queries of any type, on the CPU: against float64 on the dequantised queries, keys and values, for
every form of scales; every e4m3 number; what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens, Masks, ScaleForm, as_scale_argument
from gpu_checks import check_lse, check_out, make_attention, plan
from onewave import _core
from onewave._tensors import make_shape
from test_errors import ERRORS, plan_arguments, run_arguments, small_attention
from test_executor import DTYPES, NUM_CTAS, check_outputs, num_split_tiles, run_planned

FP8 = torch.float8_e4m3fn
# A split of either kind on NUM_CTAS CTAs, a request whose last page and group are not full, and empty ones.
MIXED = [Lens(6000, 1), Lens(400, 70), Lens(301, 3, 2), Lens(0, 4), Lens(9, 0), Lens(1, 1)]
KINDS = {"decode": [Lens(2000, 1, 2), Lens(77, 1)], "prefill": [Lens(260, 260), Lens(90, 33)], "mixed": MIXED}
# Of k and of v. Numbers of groups that do not divide the page size are left out.
FORMS = [
    (None, None),
    ("float", "tensor"),
    ("tensor", "head"),
    ("head", "float"),
    ("head", "head"),
    (1, 1),
    (1, "head"),
    (None, 5),
    (5, 1),
    (4, 16),
    (16, 2),
]


def fp8_batch(
    lens: list[Lens], heads: Heads, dtype: torch.dtype, seed: int, out_dtype: torch.dtype | None = None
) -> DenseBatch:
    return DenseBatch(lens, heads, dtype, seed, "cpu", FP8, out_dtype)


def run_and_check(
    batch: DenseBatch,
    page_size: int,
    layout: str,
    forms: tuple[str | int | None, str | int | None],
    masks: bool | Masks = True,
    q_form: ScaleForm = None,
) -> int:
    """`forms`: of k's scales and v's. The number of splits that were merged."""
    kv_layout = "HND" if layout == "HND" else "NHD"
    attention = make_attention(batch, kv_layout, NUM_CTAS)
    paged = batch.paged(page_size, layout)
    k_scale, v_scale, q_scale = (
        batch.draw_scale(form, paged, page_size, kv_layout) for form in (*forms, q_form)
    )
    if isinstance(masks, bool):
        masks = Masks(masks)
    plan(
        attention,
        batch,
        paged,
        page_size,
        masks.causal,
        window_left=masks.window_left,
        logits_soft_cap=masks.soft_cap or None,
    )
    outputs = run_planned(
        attention,
        batch,
        paged,
        k_scale=as_scale_argument(forms[0], k_scale),
        v_scale=as_scale_argument(forms[1], v_scale),
        q_scale=as_scale_argument(q_form, q_scale),
        sinks=masks.sinks,
    )
    check_outputs(outputs, batch.dequantised(k_scale, v_scale, q_scale), masks)
    return num_split_tiles(attention)


def forms_of(page_size: int) -> list[tuple[ScaleForm, ScaleForm]]:
    """Whose numbers of groups divide the page."""
    return [forms for forms in FORMS if all(page_size % form == 0 for form in forms if isinstance(form, int))]


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize(
    ("page_size", "forms"), [(size, forms) for size in (1, 5, 16) for forms in forms_of(size)]
)
def test_forms_of_scales(page_size: int, forms: tuple[ScaleForm, ScaleForm], layout: str, seed: int) -> None:
    dtype = DTYPES[seed % len(DTYPES)]
    assert run_and_check(fp8_batch(MIXED, Heads(2, 4, 64), dtype, seed), page_size, layout, forms) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [Heads(3, 2, 64), Heads(2, 8, 128), Heads(1, 4, 192, 128)])
def test_kinds_of_batches(heads: Heads, dtype: torch.dtype, kind: str, seed: int) -> None:
    batch = fp8_batch(KINDS[kind], heads, dtype, seed)
    run_and_check(batch, 16, "pair", (None, None), False)
    run_and_check(batch, 16, "strided", (4, "head"), True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("heads", [Heads(3, 2, 64), Heads(2, 8, 96), Heads(1, 4, 192, 128)])
def test_fp8_queries(heads: Heads, out_dtype: torch.dtype, kind: str, seed: int) -> None:
    batch = fp8_batch(KINDS[kind], heads, FP8, seed, out_dtype)
    run_and_check(batch, 16, "pair", (None, None), False)
    run_and_check(batch, 16, "strided", (4, "head"), True, "head")


@pytest.mark.parametrize("q_form", [None, "float", "tensor", "head"])
@pytest.mark.parametrize("k_form", [None, "float", "tensor", "head", 4])
def test_forms_of_scales_of_fp8_queries(k_form: ScaleForm, q_form: ScaleForm, seed: int) -> None:
    """Before the soft cap, with windows and sinks, which no scale multiplies."""
    batch = fp8_batch(MIXED, Heads(2, 4, 64), FP8, seed, torch.float32)
    batch.scale_queries(4)
    sinks = torch.randn(8, generator=batch.generator)
    assert run_and_check(batch, 16, "NHD", (k_form, None), Masks(True, 5500, 3.0, sinks), q_form) > 0


@pytest.mark.parametrize("page_size", [1, 5, 16])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_scales_are_before_the_soft_cap(layout: str, page_size: int, seed: int) -> None:
    """With windows and sinks, which no scale multiplies."""
    batch = fp8_batch(MIXED, Heads(2, 4, 64), torch.float32, seed)
    batch.scale_queries(4)
    sinks = torch.randn(8, generator=batch.generator)
    run_and_check(batch, page_size, layout, (page_size, 1), Masks(True, 200, 3.0, sinks))
    assert run_and_check(batch, page_size, layout, (1, page_size), Masks(True, 5500, 3.0, sinks)) > 0
    run_and_check(batch, page_size, layout, ("head", page_size), Masks(False, 200, 3.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["k", "v"])
def test_every_e4m3_number(name: str, dtype: torch.dtype) -> None:
    """One key a request hands its value through, or its score, which is one column's."""
    values = torch.arange(256, dtype=torch.uint8).view(FP8)
    expected = values.float()
    attention = onewave.BatchAttention(device="cpu")
    num_requests, head_dim = (256, 32) if name == "k" else (8, 32)
    indptr = torch.arange(num_requests + 1, dtype=torch.int32)
    attention.plan(
        indptr,
        indptr,
        indptr[:-1],
        torch.ones(num_requests, dtype=torch.int32),
        *(1, 1, head_dim, head_dim, 1),
        sm_scale=1.0,
        q_data_type=dtype,
        kv_data_type=FP8,
    )
    q = torch.ones(num_requests, 1, head_dim, dtype=dtype)
    k, v = (torch.zeros(num_requests, 1, 1, head_dim, dtype=FP8) for _ in range(2))
    if name == "k":
        k[..., 5] = values[:, None, None]
        is_number = ~expected.isnan()
        _, lse = attention.run(q, (k, v), natural_lse=True)
        assert lse is not None
        torch.testing.assert_close(lse[is_number, 0], expected[is_number], atol=0.0, rtol=1e-6)
    else:
        out, _ = attention.run(q, (k, values.view_as(v)))
        actual, expected = out.flatten(), expected.to(dtype)
        same = (actual == expected) | (actual.isnan() & expected.isnan())
        assert bool(same.all()), f"{expected[~same]}: {actual[~same]}"


def fp8_plan_arguments() -> dict[str, Any]:
    return plan_arguments() | {"kv_data_type": FP8}


def fp8_run_arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    arguments = run_arguments()
    q, kv_cache = (torch.randn(arguments[name].shape, generator=generator) for name in ("q", "kv_cache"))
    return arguments | {"q": q.bfloat16(), "kv_cache": kv_cache.to(FP8)}


def run_small(attention: onewave.BatchAttention, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = attention.run(**fp8_run_arguments(), **options)
    assert lse is not None
    return out, lse


@pytest.fixture
def planned() -> onewave.BatchAttention:
    """6 pages of 16 tokens of 2 kv heads."""
    attention = small_attention()
    attention.plan(**fp8_plan_arguments(), causal=True)
    return attention


def assert_same(
    results: tuple[torch.Tensor, torch.Tensor], others: tuple[torch.Tensor, torch.Tensor]
) -> None:
    assert all(map(torch.equal, results, others))


def test_scales_of_any_strides(planned: onewave.BatchAttention) -> None:
    """Also of 0: what is expanded counts for all that it is expanded to."""
    scales = torch.rand(6, 4, 2) + 0.5
    expected = run_small(planned, k_scale=scales, v_scale=scales)
    wide = torch.full((13, 9, 8), math.nan)
    wide[::2][:6, 1::2, 1::5] = scales
    strided = wide[::2][:6, 1::2, 1::5]
    columns = scales.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for others in (strided, columns):
        assert_same(run_small(planned, k_scale=others, v_scale=others), expected)
    by_head = scales[0, 0]
    expanded = by_head.expand(6, 4, 2)
    assert_same(
        run_small(planned, k_scale=expanded, v_scale=expanded.contiguous()),
        run_small(planned, k_scale=by_head, v_scale=by_head),
    )
    one = torch.tensor(0.7)
    assert_same(
        run_small(planned, k_scale=one.expand(6, 4, 2), v_scale=one.expand(2)),
        run_small(planned, k_scale=one, v_scale=one),
    )


def test_scales_of_one_run_are_not_the_next_ones(planned: onewave.BatchAttention) -> None:
    expected = run_small(planned)
    run_small(planned, k_scale=torch.rand(2) + 0.5, v_scale=torch.rand(6, 1, 2))
    assert_same(run_small(planned), expected)
    ones = torch.ones(6, 2, 2)
    assert_same(run_small(planned, k_scale=ones, v_scale=ones), expected)


def test_factors_of_rows_come_beside_the_scale_of_scores(planned: onewave.BatchAttention) -> None:
    by_head = torch.full((2,), 0.5)
    for one, other in zip(
        run_small(planned, sm_scale=0.3, k_scale=by_head),
        run_small(planned, sm_scale=torch.tensor(0.15)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kv_data_type", torch.float16, "torch.bfloat16, or be torch.float8_e4m3fn"),
        ("kv_data_type", torch.float8_e5m2, "is torch.float8_e5m2; it must equal q_data_type"),
        (
            "kv_data_type",
            "fp8",
            "is 'fp8'; it must equal q_data_type, torch.bfloat16, or be torch.float8_e4m3fn",
        ),
        ("q_data_type", torch.float8_e5m2, "is torch.float8_e5m2; it must be one of .*torch.float8_e4m3fn$"),
        ("o_data_type", torch.float16, "is torch.float16; it must equal q_data_type, torch.bfloat16"),
        ("o_data_type", FP8, "is torch.float8_e4m3fn; it must equal q_data_type, torch.bfloat16"),
    ],
)
def test_plan_refuses(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {message}" if message.startswith("is") else message):
        small_attention().plan(**(fp8_plan_arguments() | {name: value}))


ONES = torch.ones(6, 4, 2)
# What is changed in run(), from the right argument, and the rest of the message.
BAD_RUNS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a cache of q's type": (
        "kv_cache",
        lambda cache: cache.bfloat16(),
        "has dtype torch.bfloat16; it must be torch.float8_e4m3fn",
    ),
    "a cache of bytes": ("kv_cache", lambda cache: cache.view(torch.uint8), "it must be torch.float8_e4m3fn"),
    "rows of 8 bytes more": (
        "kv_cache",
        lambda cache: torch.nn.functional.pad(cache, (0, 8))[..., :64],
        "multiples of 16 bytes",
    ),
    "out of the cache's type": (
        "out",
        lambda out: out.to(FP8),
        "has dtype torch.float8_e4m3fn; .* torch.bfloat16",
    ),
    "too many heads": (
        "k_scale",
        lambda _: torch.ones(3),
        r"has shape \(3,\); it must be \[2\]: num_kv_heads",
    ),
    "no heads": ("v_scale", lambda _: torch.ones(0), r"has shape \(0,\); it must be \[2\]: num_kv_heads"),
    "two dimensions": (
        "k_scale",
        lambda _: ONES[0],
        r"has shape \(4, 2\); it must have one element, or be \[2\]: num_kv_heads, or \[num_pages, num_groups, num_kv",
    ),
    "heads before groups": (
        "v_scale",
        lambda _: ONES.mT,
        r"\(6, 2, 4\); it must be \[any, any, 2\]: num_pages, num_g",
    ),
    "too few pages": ("k_scale", lambda _: ONES[1:], "has 5 pages; it must have the 6 of kv_cache or more"),
    "groups that do not divide": (
        "k_scale",
        lambda _: torch.ones(6, 3, 2),
        "has 3 groups of tokens in a page; they must divide page_size = 16",
    ),
    "no groups": (
        "v_scale",
        lambda _: torch.ones(6, 0, 2),
        "has 0 groups of tokens in a page; they must divide",
    ),
    "float64": ("v_scale", lambda _: ONES.double(), "has dtype torch.float64; it must be torch.float32"),
    "elsewhere": ("k_scale", lambda _: ONES.to("meta"), "is on device meta; it must be on cpu"),
    "a list": ("k_scale", lambda _: [1.0, 1.0], r"is \[1.0, 1.0\]; it must be a float or a float32 tensor"),
    "sm_scale by head": ("sm_scale", lambda _: torch.ones(2), r"has shape \(2,\); it must have one element$"),
}


@pytest.mark.parametrize("mistake", BAD_RUNS)
def test_run_refuses(mistake: str, planned: onewave.BatchAttention) -> None:
    name, change, message = BAD_RUNS[mistake]
    arguments = fp8_run_arguments()
    with pytest.raises(ERRORS, match=name) as error:
        planned.run(**(arguments | {name: change(arguments.get(name))}))
    error.match(message)
    assert bool(arguments["out"].isnan().all() and arguments["lse"].isnan().all()), "something was written"


@pytest.mark.parametrize("scale", [torch.ones(2), ONES])
def test_a_cache_of_16_bits_has_one_factor(scale: torch.Tensor) -> None:
    attention = small_attention()
    attention.plan(**plan_arguments())
    with pytest.raises(
        ValueError, match="it must have one element: only a cache of torch.float8_e4m3fn has more"
    ):
        attention.run(**run_arguments(), v_scale=scale)
    attention.run(**run_arguments(), v_scale=torch.ones(1, 1, 1))


def test_groups_in_the_other_layout() -> None:
    attention = small_attention(kv_layout="HND")
    attention.plan(**fp8_plan_arguments())
    arguments = fp8_run_arguments()
    arguments["kv_cache"] = arguments["kv_cache"].transpose(2, 3)
    with pytest.raises(
        ValueError, match=r"\(6, 4, 2\); it must be \[any, 2, any\]: num_pages, num_kv_heads, num_g"
    ):
        attention.run(**arguments, k_scale=ONES)
    attention.run(**arguments, k_scale=ONES.mT)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_one_element_is_one_factor(num_kv_heads: int) -> None:
    """Whatever its dimensions, also where there is one kv head and more than one page."""
    attention = small_attention()
    attention.plan(**(fp8_plan_arguments() | {"num_kv_heads": num_kv_heads}))
    arguments = fp8_run_arguments()
    arguments["kv_cache"] = arguments["kv_cache"][:, :, :, :num_kv_heads]
    results = []
    for scale in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[[0.5]]])):
        out, lse = attention.run(**arguments, k_scale=scale, v_scale=scale)
        results.append((out.clone(), lse.clone()))
    for result in results[1:]:
        assert_same(result, results[0])


def fp8_query_arguments() -> dict[str, Any]:
    return fp8_plan_arguments() | {"q_data_type": FP8}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "kv_data_type",
            torch.bfloat16,
            "is torch.bfloat16; it must be torch.float8_e4m3fn where q_data_type is",
        ),
        (
            "o_data_type",
            FP8,
            "is torch.float8_e4m3fn; it must be one of torch.float32, torch.float16, torch.bf",
        ),
        ("o_data_type", "bf16", "is 'bf16'; it must be one of torch.float32"),
    ],
)
def test_plan_of_fp8_queries_refuses(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {message}"):
        small_attention().plan(**(fp8_query_arguments() | {name: value}))


def test_fp8_queries_on_a_gpu_have_an_output_of_16_bits() -> None:
    shape = (4, 2, 64, 64, 16)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert make_shape(gpu, *shape, FP8, FP8, None).out_dtype == torch.bfloat16
    assert make_shape(gpu, *shape, FP8, FP8, torch.float16).out_dtype == torch.float16
    assert make_shape(cpu, *shape, FP8, FP8, torch.float32).out_dtype == torch.float32
    with pytest.raises(
        ValueError, match="o_data_type is torch.float32; it must be torch.bfloat16 or torch.fl"
    ):
        make_shape(gpu, *shape, FP8, FP8, torch.float32)
    with pytest.raises(ValueError, match="q_data_type is torch.float32; .* or torch.float8_e4m3fn on a GPU"):
        make_shape(gpu, *shape, torch.float32, torch.float32, None)


@pytest.fixture
def planned_fp8() -> onewave.BatchAttention:
    attention = small_attention()
    attention.plan(**fp8_query_arguments(), causal=True)
    return attention


def fp8_query_run_arguments() -> dict[str, Any]:
    arguments = fp8_run_arguments()
    return arguments | {"q": arguments["q"].to(FP8)}


@pytest.mark.parametrize("out_dtype", [None, *DTYPES])
def test_an_output_that_is_not_given(out_dtype: torch.dtype | None) -> None:
    attention = small_attention()
    attention.plan(**fp8_query_arguments(), o_data_type=out_dtype)
    arguments = fp8_query_run_arguments()
    out, _ = attention.run(arguments["q"], arguments["kv_cache"])
    assert out.dtype == (out_dtype or torch.bfloat16) and not bool(out.isnan().any())
    given = torch.full_like(out, math.nan)
    attention.run(arguments["q"], arguments["kv_cache"], out=given)
    assert torch.equal(given, out)


def test_scales_of_fp8_queries(planned_fp8: onewave.BatchAttention) -> None:
    """One factor in each of its forms, heads by any stride, and none for the next run."""
    arguments = fp8_query_run_arguments()

    def run(**scales: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = planned_fp8.run(**arguments, **scales)
        return out.clone(), lse.clone()

    without = run()
    halved = run(k_scale=0.5)
    assert not torch.equal(halved[1], without[1])
    for scale in (
        0.5,
        torch.tensor(0.5),
        torch.tensor([0.5]),
        torch.tensor([[0.5]]),
        torch.tensor([0.5] * 2),
    ):
        assert_same(run(q_scale=scale), halved)
    assert_same(run(q_scale=0.25, k_scale=2.0), halved)
    assert_same(run(q_scale=0.25, k_scale=torch.tensor([2.0, 2.0])), halved)
    heads = torch.tensor([0.5, math.nan, math.nan, 2.0])
    assert_same(run(q_scale=heads[::3]), run(k_scale=torch.tensor([0.5, 2.0])))
    assert_same(run(), without)


# What is changed in run(), from the right argument, and the rest of the message.
BAD_FP8_QUERY_RUNS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "queries of 16 bits": (
        "q",
        lambda q: q.bfloat16(),
        "has dtype torch.bfloat16; it must be torch.float8_e4m3fn",
    ),
    "queries of 8 bytes more": (
        "q",
        lambda q: torch.nn.functional.pad(q, (0, 8))[..., :64],
        "multiples of 16 bytes",
    ),
    "out of q's type": (
        "out",
        lambda out: out.to(FP8),
        "has dtype torch.float8_e4m3fn; it must be torch.bfloat16",
    ),
    "out of another type": (
        "out",
        lambda out: out.half(),
        "has dtype torch.float16; it must be torch.bfloat16",
    ),
    "too many heads": (
        "q_scale",
        lambda _: torch.ones(4),
        r"has shape \(4,\); it must be \[2\]: num_kv_heads",
    ),
    "groups of tokens": (
        "q_scale",
        lambda _: ONES,
        r"has shape \(6, 4, 2\); it must have one element, or be \[2\]: num_kv_heads$",
    ),
    "float64": (
        "q_scale",
        lambda _: torch.ones(2).double(),
        "has dtype torch.float64; it must be torch.float32",
    ),
    "elsewhere": ("q_scale", lambda _: torch.ones(2, device="meta"), "is on device meta; it must be on cpu"),
    "nothing": ("q_scale", lambda _: 0.0, "is 0.0; it must be positive and finite in float32"),
    "text": ("q_scale", lambda _: "1", "is '1'; it must be a float or a float32 tensor of one element"),
}


@pytest.mark.parametrize("mistake", BAD_FP8_QUERY_RUNS)
def test_run_of_fp8_queries_refuses(mistake: str, planned_fp8: onewave.BatchAttention) -> None:
    name, change, message = BAD_FP8_QUERY_RUNS[mistake]
    arguments = fp8_query_run_arguments()
    with pytest.raises(ERRORS, match=name) as error:
        planned_fp8.run(**(arguments | {name: change(arguments.get(name))}))
    error.match(message)
    assert bool(arguments["out"].isnan().all() and arguments["lse"].isnan().all()), "something was written"


def test_a_product_of_factors_beyond_float32(planned_fp8: onewave.BatchAttention) -> None:
    with pytest.raises(ValueError, match=r"k_scale \* q_scale is 1e[+]40; it must be positive and finite"):
        planned_fp8.run(**fp8_query_run_arguments(), k_scale=1e20, q_scale=1e20)


@pytest.mark.parametrize("scale", [1.0, torch.ones(2)])
def test_queries_of_16_bits_have_no_factor(
    scale: float | torch.Tensor, planned: onewave.BatchAttention
) -> None:
    with pytest.raises(
        ValueError,
        match="q_scale is .*; it must be None where q_data_type is torch.bfloat16: only queries of torch.float8",
    ):
        run_small(planned, q_scale=scale)


def test_a_graph_keeps_the_type_of_its_output(
    planned_fp8: onewave.BatchAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as capturing:
        capturing.setattr("onewave.attention.is_capturing", lambda device: True)
        planned_fp8.run(**fp8_query_run_arguments())
    with pytest.raises(
        RuntimeError, match="^out_dtype is torch.float16 and was torch.bfloat16; it must stay"
    ):
        planned_fp8.plan(**fp8_query_arguments(), o_data_type=torch.float16)
    planned_fp8.plan(**fp8_query_arguments())


def rounded_as_a_kernel(batch: DenseBatch, wrong_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one request and kv head that sees all: its weights in e4m3, 2^6 times as large so that those down to 2^-12 have
    all bits. The first key's are multiplied by `wrong_weight`."""
    q, k, v = batch.q[:, 0].float(), batch.k[0][0, :, 0].float(), batch.v[0][0, :, 0].float()
    scores = q @ k.T / math.sqrt(batch.heads.head_dim)
    peak = scores.amax(-1, keepdim=True)
    weights = (scores - peak).exp()
    total = weights.sum(-1, keepdim=True)
    weights[:, 0] *= wrong_weight
    out = (weights * 64).to(FP8).float() / 64 @ v / total
    return out[:, None].to(batch.out_dtype), (peak + total.log()) / math.log(2)


@pytest.mark.parametrize("kv_len", [1, 3, 40, 700])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_bounds_of_the_gpu_tests(out_dtype: torch.dtype, kv_len: int, seed: int) -> None:
    """They take what rounds as the kernel may, and no more."""
    batch = fp8_batch([Lens(kv_len, 200)], Heads(1, 1, 128), FP8, seed, out_dtype)
    expected = batch.dequantised().expected(False)
    out, lse = rounded_as_a_kernel(batch, 1.0)
    check_out(out, expected)
    check_lse(lse, expected.lse, expected.lse_bound)
    with pytest.raises(AssertionError, match="lse: worst at"):
        check_lse(lse + 0.02, expected.lse, expected.lse_bound)
    with pytest.raises(AssertionError, match="out: worst at"):
        check_out(rounded_as_a_kernel(batch, 4.0)[0], expected)
    with pytest.raises(AssertionError, match="out: relative error"):
        check_out(out * 1.05, replace(expected, out_bound=torch.ones_like(expected.out)))


def test_workspace_of_an_fp8_cache() -> None:
    limits = {"max_batch_size": 4, "max_total_qo_len": 64, "max_kv_len": 512}
    heads = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 16}
    sizes = {**limits, **heads, "num_ctas": 132}
    num_bytes = onewave.workspace_size(**sizes, kv_dtype=FP8)
    assert onewave.workspace_size(**sizes) == onewave.workspace_size(**sizes, kv_dtype=torch.bfloat16)
    memory = torch.zeros(num_bytes + 256, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 256 :]
    small_attention(workspace=memory[:num_bytes]).plan(**fp8_plan_arguments())
    with pytest.raises(ValueError, match=f"it must have {num_bytes} for"):
        small_attention(workspace=memory[: num_bytes - 1]).plan(**fp8_plan_arguments())
    with pytest.raises(
        ValueError, match="kv_dtype is torch.float16; it must equal dtype, torch.bfloat16, or be"
    ):
        onewave.workspace_size(**sizes, kv_dtype=torch.float16)
    assert onewave.workspace_size(**sizes, dtype=FP8) == num_bytes
    assert onewave.workspace_size(**sizes, dtype=FP8, kv_dtype=FP8) == num_bytes
    with pytest.raises(
        ValueError, match="kv_dtype is torch.bfloat16; it must be torch.float8_e4m3fn where dtype"
    ):
        onewave.workspace_size(**sizes, dtype=FP8, kv_dtype=torch.bfloat16)


def test_a_graph_keeps_the_type_of_its_cache(
    planned: onewave.BatchAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as capturing:
        capturing.setattr("onewave.attention.is_capturing", lambda device: True)
        run_small(planned)
    with pytest.raises(
        RuntimeError, match="^kv_dtype is torch.bfloat16 and was torch.float8_e4m3fn; it must stay"
    ):
        planned.plan(**plan_arguments())
    planned.plan(**fp8_plan_arguments())


@pytest.mark.parametrize(
    ("scale", "sees_masks"), [(None, False), (0.5, False), (ONES[0, 0], False), (ONES, True)]
)
@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
def test_a_graph_with_factors_of_groups_sees_masks(
    name: str,
    scale: float | torch.Tensor | None,
    sees_masks: bool,
    planned: onewave.BatchAttention,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one with sinks does: both take the kernel that looks at them."""
    with monkeypatch.context() as capturing:
        capturing.setattr("onewave.attention.is_capturing", lambda device: True)
        run_small(planned, **{name: scale})
    if sees_masks:
        planned.plan(**fp8_plan_arguments(), window_left=5)
        return
    with pytest.raises(RuntimeError, match="captured in a CUDA graph by a plan without"):
        planned.plan(**fp8_plan_arguments(), window_left=5)


def test_executor_refuses(planned: onewave.BatchAttention) -> None:
    """Types that are not to be."""
    bfloat16, float16, e4m3 = _core.DType.BFLOAT16, _core.DType.FLOAT16, _core.DType.FLOAT8_E4M3
    for dtype, kv_dtype, out_dtype, message in (
        (
            bfloat16,
            float16,
            None,
            "kv_dtype is float16; it must be float8_e4m3fn, or that of q, bfloat16",
        ),
        (e4m3, bfloat16, None, "kv_dtype is bfloat16; it must be float8_e4m3fn"),
        (bfloat16, None, float16, "out_dtype is float16; it must be that of q, bfloat16"),
        (
            e4m3,
            e4m3,
            e4m3,
            "out_dtype is float8_e4m3fn; it must be bfloat16, float16 or float32 where q is float8",
        ),
    ):
        args = _core.RunArgs(dtype, *[0] * 11, 6, *[0] * 3, 4, 0, 0.0, 1.0, 1.0, 0, 0, 0, kv_dtype, out_dtype)
        with pytest.raises(ValueError, match=message):
            _core.execute_plan(planned.plan_bytes(), args, 1)
    scaled = _core.RunArgs(bfloat16, *[0] * 11, 6, *[0] * 3, 4, 0, 0.0, 1.0, 1.0, 0, 0, 0)
    factors = torch.ones(2)
    scaled.set_scales(0.0, 1.0, 1.0, 0, 0, 0, q_scale_ptr=factors.data_ptr())
    with pytest.raises(ValueError, match="q_scales are given; they must be null where q is bfloat16"):
        _core.execute_plan(planned.plan_bytes(), scaled, 1)
