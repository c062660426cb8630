"""What run() refuses, against a made-up driver: strides, spans and sizes of tensors, also those of a capture."""

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from fake_driver import HEAD_DIM, NUM_KV_HEADS, NUM_PAGES, PAGE_SIZE, PARAMS, FakeDriver, Step
from hypothesis import given, settings
from hypothesis import strategies as st
from onewave import _core

Check = Callable[[Path], None]


def check_capture_bakes_arguments_for_later_plans(path: Path) -> None:
    """A plan of no query tokens reads neither q nor the cache; a replay after a later plan does."""
    fake = FakeDriver(path)
    step = Step()
    step.plan(qo_len=0)
    nothing = {"q": 0, "out": 0, "num_pages": 0}
    step.run(**nothing)
    fake.set("is_capturing", 1)
    step.refuses("q is null", q=0)
    step.refuses("out must start at a multiple of 16 bytes", out=0x1008)
    step.refuses("num_pages is 0; it must be positive in a capture", num_pages=0)
    step.refuses("k is null", k=0)
    assert fake.get("num_launches") == 1


def check_strides_of_later_plans(path: Path) -> None:
    """A plan of one token takes no token stride of q and out, but one of more tokens may follow."""
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    step.refuses("q token stride is 100 elements", q_token_stride=100)
    step.refuses("out token stride is 100 elements", out_token_stride=100)
    step = Step(max_total_qo_len=1)
    step.plan()
    step.run(q_token_stride=100, out_token_stride=100)
    assert fake.get("num_launches") == 1


def check_rows_that_the_plan_does_not_have(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan(qo_len=5)
    step.refuses("num_rows is 4; it must be at least the plan's total_qo_len = 5", num_rows=4)
    step.run(num_rows=5)
    step.run(num_rows=1 << 40)
    params = PARAMS.unpack_from((ctypes.c_char * 896).in_dll(fake.library, "launch_params"))
    assert params[2] == (1 << 31) - 1
    assert fake.get("num_launches") == 2


def check_a_cache_without_pages(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan(kv_len=0)
    step.run(num_pages=0, k=0, v=0)
    assert (fake.get("num_launches"), fake.get("num_maps")) == (1, 0)
    step.plan()
    step.refuses("num_pages is 0; it must be positive, the plan has keys", num_pages=0, k=0, v=0)
    assert fake.get("num_launches") == 1


def check_cache_strides(path: Path) -> None:
    fake = FakeDriver(path)
    limit = 1 << 39  # elements: 2^40 bytes
    for page_size in (PAGE_SIZE, 12):
        step = Step(page_size)
        step.plan()
        for name, dimension in (("k", "page"), ("v", "token"), ("v", "head")):
            for stride in (-HEAD_DIM, limit, -(1 << 63)):
                message = f"{name} {dimension} stride is {stride} elements; .*negative.*below 2.40 bytes"
                step.refuses(message, **{f"{name}_{dimension}_stride": stride})
        step.run(num_pages=1, k_page_stride=-1)  # never taken
    assert fake.get("num_launches") == 2


def check_cache_spans(path: Path) -> None:
    """TMA takes any, a gather 2^32 - 1 times 16 bytes."""
    fake = FakeDriver(path)
    limit = 1 << 39  # elements: 2^40 bytes
    step = Step()
    step.plan()
    step.run(k_page_stride=limit - 8)
    step = Step(page_size=12)
    step.plan()
    rest = 11 * NUM_KV_HEADS * HEAD_DIM + (NUM_KV_HEADS - 1) * HEAD_DIM  # tokens and heads of the last page
    longest = ((1 << 32) - 2) * 8 - rest
    for name in "kv":
        message = f"{name} reaches over 64 GiB or more; .*pages of 12 tokens"
        other = "v" if name == "k" else "k"
        huge = {f"{name}_page_stride": limit - 8, f"{other}_page_stride": 0}
        step.refuses(message, num_pages=2, **{f"{name}_page_stride": longest + 8})
        step.refuses(message, num_pages=(1 << 31) - 1, **huge)
        step.run(num_pages=2, **{f"{name}_page_stride": longest})
    assert fake.get("num_launches") == 3


def check_expanded_caches(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    step.refuses("k head stride is 0; .* pages of 16 tokens, which TMA loads", k_head_stride=0)
    step.refuses("v page stride is 0; .* has to be copied", v_page_stride=0)
    step = Step(page_size=12)
    step.plan()
    step.run(k_head_stride=0, v_page_stride=0)
    assert fake.get("num_launches") == 1


def check_bad_run_arguments(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    nan, inf = float("nan"), float("inf")
    for changes, message in (
        ({"k_scale": 0.0}, "k_scale is 0; it must be positive and finite"),
        ({"k_scale": -1.0}, "k_scale is -1; it must be positive and finite"),
        ({"k_scale": nan}, "k_scale is nan; it must be positive and finite"),
        ({"k_scale": inf}, "k_scale is inf; it must be positive and finite"),
        ({"v_scale": nan}, "v_scale is nan; it must be finite"),
        ({"v_scale": -inf}, "v_scale is -inf; it must be finite"),
        ({"dtype": _core.DType.FLOAT16}, "is float16; the plan was made for bfloat16"),
        ({"q": 0x1008}, "q must start at a multiple of 16 bytes"),
        ({"out": 0}, "out is null"),
        ({"k": 0x2002}, "k must start at a multiple of 16 bytes"),
        ({"v_token_stride": 100}, "v token stride is 100 elements"),
        ({"q_head_stride": 129}, "q head stride is 129 elements"),
        ({"q_token_stride": 1 << 31}, "q token stride is 2147483648 elements; it must be an int32"),
        ({"out_head_stride": -(1 << 31) - 8}, "out head stride is -2147483656 elements; it must be an int32"),
        ({"num_pages": 1 << 31}, "num_pages is 2147483648"),
        ({"num_pages": -1}, "num_pages is -1"),
    ):
        step.refuses(message, **changes)
    assert fake.get("num_launches") == 0


INT64 = st.one_of(
    st.sampled_from([-(1 << 63), -(1 << 31) - 8, -8, 0, 8, (1 << 31) - 8, 1 << 31, 1 << 39, (1 << 63) - 8]),
    st.integers(-(1 << 60), (1 << 60) - 1).map(lambda x: 8 * x),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
ADDRESS = st.one_of(st.sampled_from([0, 16, (1 << 64) - 16]), st.integers(0, (1 << 64) - 1))
SCALE = st.one_of(st.sampled_from([0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan")]), st.floats(width=32))
STRIDES = [f"{name}_{of}_stride" for name in ("q", "out") for of in ("token", "head")] + [
    f"{name}_{of}_stride" for name in "kv" for of in ("page", "token", "head")
]
HOSTILE = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys([*STRIDES, "num_pages", "num_rows"], INT64)
    | dict.fromkeys(("q", "k", "v", "out"), ADDRESS)
    | {"k_scale": SCALE, "v_scale": SCALE},
)


def check_hostile_arguments(path: Path) -> None:
    """An error that names the argument, or a launch that gets what was asked for, whole."""
    fake = FakeDriver(path)
    steps = [Step(PAGE_SIZE), Step(page_size=12), Step(dtype=_core.DType.FLOAT8_E4M3)]
    for step in steps:
        step.plan()

    @settings(max_examples=500, deadline=None, database=None)
    @given(step=st.sampled_from(steps), changes=HOSTILE)
    def check(step: Step, changes: dict[str, int]) -> None:
        before = fake.get("num_launches")
        try:
            step.run(dtype=step.shape.dtype, **changes)
        except ValueError as error:
            assert re.match("(q|out|k|v|num_pages|num_rows|sm_scale|k_scale|v_scale) ", str(error))
            assert fake.get("num_launches") == before
            return
        assert fake.get("num_launches") == before + 1
        params = PARAMS.unpack_from((ctypes.c_char * 896).in_dll(fake.library, "launch_params"))
        taken = {"num_pages": params[1], "q": params[7], "out": params[8]}
        taken |= dict(zip(STRIDES[:4], params[9:13], strict=True))
        if step is steps[1]:
            taken |= {"k": params[24], "v": params[28]}
            for name, chunks in zip(STRIDES[4:], (*params[25:28], *params[29:32]), strict=True):
                taken[name] = 8 * chunks
        num_pages = changes.get("num_pages", NUM_PAGES)
        for name in taken.keys() & changes.keys():
            is_taken = num_pages > 1 if "page_stride" in name else True
            assert taken[name] == changes[name] or not is_taken, name

    check()


@pytest.mark.parametrize(
    "check",
    [
        check_capture_bakes_arguments_for_later_plans,
        check_strides_of_later_plans,
        check_rows_that_the_plan_does_not_have,
        check_a_cache_without_pages,
        check_cache_strides,
        check_cache_spans,
        check_expanded_caches,
        check_bad_run_arguments,
        check_hostile_arguments,
    ],
)
def test_run_arguments(fake_driver: Path, elsewhere: ProcessPoolExecutor, check: Check) -> None:
    elsewhere.submit(check, fake_driver).result()
