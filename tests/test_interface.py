"""BatchAttention is called as FlashInfer's is, and a plan() that fails changes nothing."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onewave
import pytest
import torch
from test_errors import int32, plan_arguments, run_arguments, small_attention

Required = inspect.Parameter.empty
PLAN = {
    "qo_indptr": Required,
    "kv_indptr": Required,
    "kv_indices": Required,
    "kv_len_arr": Required,
    "num_qo_heads": Required,
    "num_kv_heads": Required,
    "head_dim_qk": Required,
    "head_dim_vo": Required,
    "page_size": Required,
    "causal": False,
    "sm_scale": None,
    "logits_soft_cap": None,
    "q_data_type": torch.bfloat16,
    "kv_data_type": torch.bfloat16,
    "use_profiler": False,
}
RUN = {
    "q": Required,
    "kv_cache": Required,
    "out": None,
    "lse": None,
    "k_scale": None,
    "v_scale": None,
    "logits_soft_cap": 0.0,
    "profiler_buffer": None,
    "kv_cache_sf": None,
}


@pytest.mark.parametrize(
    ("method", "flashinfer"),
    [
        (onewave.BatchAttention.__init__, {"kv_layout": "NHD", "device": "cuda"}),
        (onewave.BatchAttention.plan, PLAN),
        (onewave.BatchAttention.run, RUN),
        (onewave.BatchAttention.prewarm_paged_kv_stride_variant, {"variant": "independent"}),
    ],
)
def test_names_order_and_defaults_are_flashinfers(
    method: Callable[..., Any], flashinfer: dict[str, Any]
) -> None:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == list(flashinfer.items())
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[len(positional) :])


def random_run_arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    arguments = run_arguments()
    for name in ("q", "kv_cache"):
        arguments[name] = torch.randn(arguments[name].shape, generator=generator).bfloat16()
    return arguments


def run(attention: onewave.BatchAttention) -> tuple[torch.Tensor, torch.Tensor]:
    return attention.run(**random_run_arguments())


def test_all_arguments_by_position() -> None:
    attention = small_attention()
    attention.plan(*plan_arguments().values(), True, 0.2, None, torch.bfloat16, torch.bfloat16, False)
    attention.prewarm_paged_kv_stride_variant("independent")
    arguments = random_run_arguments()
    out, lse = attention.run(*arguments.values(), 0.5, 2.0, 0.0, None, None)
    assert out is arguments["out"] and lse is arguments["lse"]

    named = small_attention()
    named.plan(**plan_arguments(), causal=True, sm_scale=0.2)
    expected_out, expected_lse = named.run(**random_run_arguments(), k_scale=0.5, v_scale=2.0)
    assert torch.equal(out, expected_out) and torch.equal(lse, expected_lse)


def test_numbers_of_numpy_are_numbers() -> None:
    attention, expected = small_attention(), small_attention()
    changes = {"num_qo_heads": np.int64(4), "page_size": np.int32(16), "sm_scale": np.float32(0.25)}
    attention.plan(**(plan_arguments() | changes))
    expected.plan(**plan_arguments(), sm_scale=0.25)
    out, _ = attention.run(**random_run_arguments(), k_scale=np.float32(0.5))
    expected_out, _ = expected.run(**random_run_arguments(), k_scale=0.5)
    assert torch.equal(out, expected_out)


def test_page_ids_behind_the_last_request_are_not_looked_at() -> None:
    """An engine's table is as long as its largest batch, and padded with anything."""
    attention, expected = small_attention(), small_attention()
    attention.plan(**(plan_arguments() | {"kv_indices": int32(4, 0, 5, 1, 2, -1, 99)}))
    expected.plan(**plan_arguments())
    assert torch.equal(run(attention)[0], run(expected)[0])


FAILING_CHANGES: dict[str, dict[str, Any]] = {
    "of the same shape": {"kv_len_arr": int32(40, -1)},
    "of another head count": {"num_qo_heads": 8, "kv_len_arr": int32(40, -1)},
    "of another type": {
        "q_data_type": torch.float16,
        "kv_data_type": torch.float16,
        "kv_len_arr": int32(513, 20),
    },
    "of too small pages": {"page_size": 8},
    "beyond the limits": {"qo_indptr": int32(0, 3, 65)},
}


@pytest.mark.parametrize("changes", FAILING_CHANGES)
def test_a_failed_plan_leaves_the_last_one(changes: str) -> None:
    """Its bytes, and what run() checks against: also where the failed one was for another shape."""
    attention = small_attention()
    attention.plan(**plan_arguments(), causal=True)
    plan_bytes = attention.plan_bytes()
    out, lse = run(attention)
    with pytest.raises(ValueError):
        attention.plan(**(plan_arguments() | FAILING_CHANGES[changes]))
    assert attention.plan_bytes() == plan_bytes
    again_out, again_lse = run(attention)
    assert torch.equal(out, again_out) and torch.equal(lse, again_lse)


def test_a_failed_first_plan_leaves_none() -> None:
    attention = small_attention()
    with pytest.raises(ValueError):
        attention.plan(**(plan_arguments() | {"kv_len_arr": int32(40, -1)}))
    with pytest.raises(RuntimeError, match="call plan"):
        run(attention)


def test_a_plan_of_another_shape_replaces_all_of_the_last() -> None:
    attention, fresh = small_attention(), small_attention()
    attention.plan(**(plan_arguments() | {"num_kv_heads": 4, "page_size": 32}))
    for planned in (attention, fresh):
        planned.plan(**plan_arguments())
    assert torch.equal(run(attention)[0], run(fresh)[0])


def test_outputs_that_run_allocates_have_the_rows_of_q() -> None:
    attention = small_attention()
    attention.plan(**plan_arguments())
    arguments = random_run_arguments()
    arguments["q"] = torch.cat([arguments["q"], arguments["q"]])
    out, lse = attention.run(arguments["q"], arguments["kv_cache"])
    assert out.shape == arguments["q"].shape and lse.shape == out.shape[:2]
    assert torch.equal(out[:4], run(attention)[0])


def block_table_arguments(**changes: Any) -> dict[str, Any]:
    """Those of plan_arguments, as a slice of a wider table whose unused entries are no page ids."""
    table = torch.full((5, 9), -7, dtype=torch.int32)
    csr = plan_arguments()
    begins = csr["kv_indptr"].tolist()
    for request, (begin, end) in enumerate(itertools.pairwise(begins)):
        table[request, : end - begin] = csr["kv_indices"][begin:end]
    return csr | {"kv_indptr": None, "kv_indices": None, "block_table": table[:, :7]} | changes


def test_a_block_table_is_another_page_table() -> None:
    expected = small_attention()
    expected.plan(**plan_arguments(), causal=True)
    attention = small_attention()
    attention.plan(**block_table_arguments(), causal=True)
    for one, other in zip(run(attention), run(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_indptr": int32(0, 3, 5)}, "kv_indptr is a Tensor; it must be None with a block_table"),
        ({"kv_indices": int32(1, 2)}, "kv_indices is a Tensor; it must be None with a block_table"),
        ({"block_table": int32(1, 2)}, r"block_table has shape \(2,\); it must have 2 dimensions"),
        ({"block_table": torch.zeros(1, 7, dtype=torch.int32)}, r"\(1, 7\).*each of the 2 requests"),
        ({"block_table": torch.zeros(2, 0, dtype=torch.int32)}, r"\(2, 0\).*a row of page ids"),
        ({"block_table": torch.zeros(7, 2, dtype=torch.int32).T}, "the last one must be 1"),
        ({"block_table": torch.zeros(2, 2, dtype=torch.int32)}, "block_table gives request 0 2 pages"),
        ({"block_table": torch.full((2, 7), -1, dtype=torch.int32)}, "block_table has page id -1"),
        ({"block_table": torch.zeros(2, 7)}, "torch.float32; it must be torch.int32"),
        ({"block_table": None}, "kv_indptr is a NoneType; it must be a torch.Tensor"),
    ],
)
def test_bad_block_tables_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        small_attention().plan(**block_table_arguments(**changes))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_scale_of_one_run(as_tensor: bool) -> None:
    """In place of the plan's, for one call."""
    attention, expected = small_attention(), small_attention()
    attention.plan(**plan_arguments(), sm_scale=0.3)
    expected.plan(**plan_arguments(), sm_scale=0.8)
    before = run(attention)
    scale = torch.tensor(0.8) if as_tensor else 0.8
    changed = attention.run(**random_run_arguments(), sm_scale=scale, k_scale=1.0)
    for one, other in zip(changed, run(expected), strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)
    assert torch.equal(run(attention)[0], before[0])


def test_lse_may_be_left_out() -> None:
    attention = small_attention()
    attention.plan(**plan_arguments())
    out, lse = run(attention)
    arguments = random_run_arguments() | {"lse": None}
    alone, nothing = attention.run(**arguments, return_lse=False)
    assert nothing is None
    assert torch.equal(alone, out)
    with pytest.raises(ValueError, match="lse is given; it must be None with return_lse=False"):
        attention.run(**(arguments | {"lse": lse}), return_lse=False)


def test_lengths_that_are_known_when_it_runs() -> None:
    """Planned from bounds: the same as planned from the lengths, as plan() and update_kv_lens() find them."""
    kv_lens = plan_arguments()["kv_len_arr"]
    bounds = kv_lens + int32(5, 12)
    actual = kv_lens.clone()
    bounded = small_attention()
    bounded.plan(
        **block_table_arguments(kv_len_arr=bounds, block_table=torch.ones(2, 7, dtype=torch.int32)),
        causal=True,
        actual_kv_len_arr=actual,
    )
    for lens in (kv_lens, kv_lens - 9, int32(0, 3), bounds):
        actual.copy_(lens)
        bounded.update_kv_lens()
        exact = small_attention()
        exact.plan(
            **block_table_arguments(kv_len_arr=lens, block_table=torch.ones(2, 7, dtype=torch.int32)),
            causal=True,
        )
        for one, other in zip(run(bounded), run(exact), strict=True):
            torch.testing.assert_close(one, other)
    actual.copy_(bounds + 1)  # counts as the bound
    bounded.update_kv_lens()
    assert torch.equal(run(bounded)[0], run(exact)[0])
    actual.zero_()  # not read by a run
    assert torch.equal(run(bounded)[0], run(exact)[0])


def test_lengths_are_updated_after_a_plan() -> None:
    attention = small_attention()
    with pytest.raises(RuntimeError, match=r"update_kv_lens\(\) needs a plan"):
        attention.update_kv_lens()
    attention.plan(**plan_arguments())
    before = run(attention)
    attention.update_kv_lens()  # of a plan whose lengths are no bounds
    assert torch.equal(run(attention)[0], before[0])


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (int32(40), "has 1 elements; it must have the 2 of kv_len_arr"),
        (torch.tensor([40, 20]), "torch.int64; it must be torch.int32"),
        (int32(40, 0, 20, 0)[::2], "it must be contiguous"),
        (torch.empty(2, dtype=torch.int32, device="meta"), "meta; it must be on cpu"),
    ],
)
def test_bad_actual_lengths_are_named(actual: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"actual_kv_len_arr.*{message}"):
        small_attention().plan(**plan_arguments(), actual_kv_len_arr=actual)
