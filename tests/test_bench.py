"""The benchmark without a GPU: its workloads, its oracle, a run on the CPU executor, tables and records."""

import json
import math
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from onewave._cli import main
from onewave.bench.ceilings import H100, H200, ceilings_of
from onewave.bench.harness import Harness, one_line
from onewave.bench.peers import flash_attention3, flashinfer
from onewave.bench.reference import (
    MAX_RELATIVE_ERROR,
    max_relative_error,
    reference_attention,
    relative_error,
)
from onewave.bench.result import Result, WorkloadResult, write_json
from onewave.bench.system import Onewave, System, Unsupported
from onewave.bench.table import print_result, summary_table
from onewave.bench.tensors import BatchTensors, make_tensors
from onewave.bench.workload import Request, Workload
from onewave.bench.workloads import SMOKE, WORKLOADS, default_workloads, select_workloads
from onewave.plan_format import Plan
from reference import attend
from rich.console import Console
from test_cli import run_cli

CPU = torch.device("cpu")
# Microseconds, as they were first published beside the times of other kernels.
FLOORS_US = {
    "fi_hybrid_qwen8b_p1": 936,
    "fi_hybrid_llama70b_p1": 1087,
    "fi_hybrid_qwenmoe_d64_p1": 544,
    "hybrid_qwen7b_p16": 476,
    "decode_uniform_b128_8k": 914,
    "decode_b16_4k": 57,
    "decode_b1_128k": 114,
    "prefill_1x8k": 696,
    "prefill_8x2k": 348,
    "spec_b64_q4_4k": 229,
}
# Tokens in all: another generator would give other batches.
RANDOM_KV_LENS = {
    "lognormal_b64_chunk2k": 573967,
    "lognormal_b160_chunk512": 573437,
    "spec_b48_q5_decode_b32": 390965,
    "short_b24_prompt256": 30002,
    "prefill_ragged_b24": 59864,
    "decode_lognormal_b64": 421386,
}
# As the library declares them.
FA3_FWD = """fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out,
Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k,
int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k,
Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale,
Tensor? v_descale, float softmax_scale, bool is_causal, int window_size_left, int window_size_right, float softcap,
bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, int sm_margin,
Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"""
FA3_PLAN = """get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads,
int num_heads_k, int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q,
Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size,
int max_seqlen_k_new, bool is_causal, int window_size_left, int window_size_right, bool has_softcap, int num_splits,
bool? pack_gqa, int sm_margin) -> Tensor"""


def tiny(*requests: tuple[int, int], causal: bool = True, num_graph_nodes: int = 0) -> Workload:
    return Workload(
        "tiny",
        tuple(Request(*request) for request in requests),
        num_qo_heads=4,
        num_kv_heads=2,
        head_dim=64,
        page_size=8,
        causal=causal,
        num_graph_nodes=num_graph_nodes,
    )


def test_floors_are_those_of_the_published_table() -> None:
    for name, floor_us in FLOORS_US.items():
        assert WORKLOADS[name].floor_us(H200) == pytest.approx(floor_us, rel=0.02), name


def test_floors_are_those_of_the_gpu() -> None:
    assert ceilings_of("NVIDIA H200") is H200
    assert ceilings_of("NVIDIA H100 80GB HBM3") is H100
    assert ceilings_of("another") is H200
    decode, prefill = WORKLOADS["decode_uniform_b128_8k"], WORKLOADS["prefill_1x8k"]
    assert decode.floor_us(H100) / decode.floor_us(H200) == pytest.approx(4.70 / 3.12)
    assert prefill.floor_us(H100) / prefill.floor_us(H200) == pytest.approx(790 / 780)


def test_floors_of_an_fp8_cache() -> None:
    """Half the bytes of K and V, and those of q and out: what takes longest where there is one query a request."""
    for name in ("decode_uniform_b128_8k", "decode_b16_4k", "prefill_1x8k"):
        wide, fp8 = WORKLOADS[name], WORKLOADS[f"{name}_fp8"]
        assert fp8.requests == wide.requests and fp8.num_flop == wide.num_flop
        kv_rows = 2 * sum(request.kv_len for request in fp8.requests) * fp8.num_kv_heads
        assert wide.num_bytes - fp8.num_bytes == kv_rows * fp8.head_dim
        assert "cache of float8_e4m3fn" in fp8.describe() and "cache of" not in wide.describe()
    ratio = WORKLOADS["decode_b16_4k_fp8"].floor_us(H200) / WORKLOADS["decode_b16_4k"].floor_us(H200)
    assert ratio == pytest.approx(0.5, rel=0.01)


def test_floors_of_fp8_queries() -> None:
    """Beside a cache of fp8: half the bytes of q too, and products twice as fast."""
    for name in ("decode_uniform_b128_8k", "prefill_1x8k"):
        cache, queries = WORKLOADS[f"{name}_fp8"], WORKLOADS[f"{name}_fp8q"]
        assert queries.requests == cache.requests and queries.num_flop == cache.num_flop
        num_elements = cache.total_qo_len * cache.num_qo_heads * cache.head_dim
        assert cache.num_bytes - queries.num_bytes == num_elements
        assert "queries and cache of float8_e4m3fn" in queries.describe()
    for head_dim in ("", "_d64", "_d256"):
        wide, queries = WORKLOADS[f"prefill_1x8k{head_dim}"], WORKLOADS[f"prefill_1x8k{head_dim}_fp8q"]
        assert queries.floor_us(H200) == pytest.approx(wide.floor_us(H200) / 2)


def test_random_lengths_are_the_same_everywhere() -> None:
    drawn = [workload for workload in default_workloads() if workload.lens_seed is not None]
    totals = {workload.name: sum(request.kv_len for request in workload.requests) for workload in drawn}
    assert totals == RANDOM_KV_LENS


def test_workloads_are_sound() -> None:
    for name, workload in WORKLOADS.items():
        assert workload.name == name
        assert workload.num_qo_heads % workload.num_kv_heads == 0
        assert all(0 < request.qo_len <= request.kv_len for request in workload.requests), name


@pytest.mark.parametrize("window_left", [-1, 0, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_visible_pairs(causal: bool, window_left: int) -> None:
    for kv_len in range(6):
        for qo_len in range(6):
            pairs = {
                (query, key)
                for query in range(qo_len)
                for key in range(kv_len)
                if (not causal or key <= kv_len - qo_len + query)
                and (window_left < 0 or key >= kv_len - qo_len + query - window_left)
            }
            request = Request(kv_len, qo_len)
            assert request.num_pairs(causal, window_left) == len(pairs), (kv_len, qo_len)
            if 0 < qo_len <= kv_len:
                assert request.num_keys(window_left) == len({key for _, key in pairs}), (kv_len, qo_len)


@pytest.mark.parametrize(("window_left", "logits_soft_cap"), [(5, 0.0), (0, 0.0), (-1, 2.0), (20, 0.5)])
def test_masks_against_the_reference(window_left: int, logits_soft_cap: float) -> None:
    workload = replace(
        tiny((21, 1), (300, 7), (40, 17)), window_left=window_left, logits_soft_cap=logits_soft_cap
    )
    tensors = make_tensors(workload, "cpu", seed=5, unused=math.nan)
    ours = Onewave(tensors)
    ours.plan()
    ours.run()
    expected, _ = reference_attention(tensors, torch.float32)
    assert relative_error(ours.output(), expected) <= MAX_RELATIVE_ERROR


def test_an_fp8_cache_against_the_reference() -> None:
    """Which takes the values that the cache has."""
    workload = replace(tiny((70, 1), (300, 7), (41, 17)), kv_dtype=torch.float8_e4m3fn)
    tensors = make_tensors(workload, "cpu", seed=5, unused=math.nan)
    assert tensors.kv_cache.dtype == torch.float8_e4m3fn
    ours = Onewave(tensors)
    ours.plan()
    ours.run()
    expected, _ = reference_attention(tensors, torch.float32)
    assert relative_error(ours.output(), expected) <= MAX_RELATIVE_ERROR
    wide, _ = reference_attention(make_tensors(tiny(*workload.requests), "cpu", seed=5), torch.float32)
    assert relative_error(wide, expected) > MAX_RELATIVE_ERROR


FP8_QUERIES = {"dtype": torch.float8_e4m3fn, "kv_dtype": torch.float8_e4m3fn}


def test_fp8_queries_against_the_reference() -> None:
    """Of the values that q has; the bound is one for kernels that round weights to fp8."""
    workload = replace(tiny((70, 1), (300, 7), (41, 17)), **FP8_QUERIES)
    tensors = make_tensors(workload, "cpu", seed=5, unused=math.nan)
    assert tensors.q.dtype == tensors.kv_cache.dtype == torch.float8_e4m3fn
    ours = Onewave(tensors)
    ours.plan()
    ours.run()
    expected, _ = reference_attention(tensors, torch.float32)
    assert ours.output().dtype == torch.bfloat16
    assert relative_error(ours.output(), expected) <= MAX_RELATIVE_ERROR < max_relative_error(workload)
    wide, _ = reference_attention(make_tensors(tiny(*workload.requests), "cpu", seed=5), torch.float32)
    assert relative_error(wide, expected) > MAX_RELATIVE_ERROR
    for error, is_right in ((0.035, True), (0.045, False)):
        assert (
            Result("a", relative_error=error, max_relative_error=max_relative_error(workload)).is_right
            == is_right
        )
        assert not Result("a", relative_error=error).is_right


def test_a_shared_prefix_is_in_the_same_pages_and_counted_once() -> None:
    requests = (Request(600, 1), Request(700, 2), Request(513, 1))
    workload = Workload("prefix", requests, num_qo_heads=4, num_kv_heads=2, head_dim=64, prefix_len=512)
    assert "512 of the tokens shared" in workload.describe()
    rows = 600 + 700 + 513 - 2 * 512
    assert workload.num_bytes == 2 * 2 * 64 * (2 * rows + 4 * 4)
    tensors = make_tensors(workload, "cpu", 0)
    first, second, third = (tensors.pages_of(i) for i in range(3))
    assert torch.equal(first[:32], second[:32]) and torch.equal(first[:32], third[:32])
    assert (
        len(torch.cat([first, second[32:], third[32:]]).unique())
        == len(first) + len(second) + len(third) - 64
    )
    expected, _ = reference_attention(tensors, torch.float32)
    num_items = []
    for reads_once in (True, False):
        system = Onewave(tensors, reads_prefixes_once=reads_once)
        system.plan()
        system.run()
        assert relative_error(system.output(), expected) <= MAX_RELATIVE_ERROR
        num_items.append(len(Plan(system.plan_bytes()).items))
    assert num_items[0] > num_items[1]  # those of the prefix


def test_selection() -> None:
    assert [workload.name for workload in select_workloads(["decode_b1_*", SMOKE])] == [
        "decode_b1_128k",
        "decode_b1_1k_graph",
        "smoke",
    ]
    assert len(select_workloads(["*"])) == len(default_workloads()) + 1
    halves = select_workloads(["hybrid_qwen7b_p16/*"])
    assert sum((half.requests for half in halves), ()) == WORKLOADS["hybrid_qwen7b_p16"].requests
    with pytest.raises(ValueError, match="'nothing'"):
        select_workloads(["prefill_1x8k", "nothing"])


@pytest.mark.parametrize("causal", [True, False])
def test_reference_against_float64(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of a few queries, with tails of NaN, more queries than keys, and requests without either."""
    monkeypatch.setattr("onewave.bench.reference.MAX_BLOCK_SCORES", 128)
    workload = tiny((21, 1), (3, 7), (0, 2), (40, 17), (9, 0), causal=causal)
    tensors = make_tensors(workload, "cpu", seed=5, unused=math.nan)
    out, lse = reference_attention(tensors, torch.float32)
    for rows, k, v in tensors.requests():
        k, v = (
            side.double().repeat_interleave(workload.group_size, dim=1).transpose(0, 1) for side in (k, v)
        )
        q = tensors.q[rows].double().transpose(0, 1)
        expected_out, expected_lse = attend(q, k, v, causal, 1 / math.sqrt(workload.head_dim))
        torch.testing.assert_close(out[rows].double(), expected_out.transpose(0, 1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse[rows].double(), expected_lse.T, atol=1e-5, rtol=1e-5)


def test_relative_error() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, math.nan]), expected) == math.inf


class Broken:
    """Fails in its nth run."""

    def __init__(self, tensors: BatchTensors, num_good_runs: int) -> None:
        self._onewave = Onewave(tensors)
        self._num_left = num_good_runs

    def plan(self) -> None:
        self._onewave.plan()

    def run(self) -> None:
        self._num_left -= 1
        if self._num_left < 0:
            raise RuntimeError("out\nof order")
        self._onewave.run()

    def output(self) -> torch.Tensor:
        return self._onewave.output()


class Wrong(Onewave):
    """Computes something else."""

    def output(self) -> torch.Tensor:
        return super().output() * 1.01


def unsupported(_: BatchTensors) -> System:
    raise Unsupported("not on Sundays")


def test_a_failure_leaves_the_others_alone() -> None:
    systems = {
        "broken_at_once": lambda tensors: Broken(tensors, 0),
        "onewave": Onewave,
        "broken_later": lambda tensors: Broken(tensors, 6),
        "unsupported": unsupported,
        "wrong": Wrong,
    }
    steps: list[str] = []
    harness = Harness(CPU, num_runs=4, seed=0)
    measured = harness.measure(tiny((70, 1), (40, 9)), systems, steps.append)
    results = {result.system: result for result in measured.results}
    assert [result.system for result in measured.timed] == ["onewave", "wrong"]
    ours = results["onewave"]
    assert len(ours.times_us) == len(ours.plan_us) == 4 and min(ours.times_us) > 0
    assert ours.relative_error is not None and 0 < ours.relative_error <= MAX_RELATIVE_ERROR
    for name in ("broken_at_once", "broken_later"):
        assert results[name].failure == "RuntimeError: out of order" and not results[name].is_unsupported
    assert results["unsupported"].failure == "not on Sundays" and results["unsupported"].is_unsupported
    assert not results["wrong"].is_right and measured.best_peer is None
    assert len(steps) <= harness.num_steps(len(systems)) and steps[-1] == "run 4 of 4"


def test_a_graph_counts_its_runs() -> None:
    num_runs = 0

    class Counted(Onewave):
        def run(self) -> None:
            nonlocal num_runs
            num_runs += 1

    harness = Harness(CPU, num_runs=2, seed=0, is_checked=False)
    measured = harness.measure(tiny((8, 1), num_graph_nodes=10), {"onewave": Counted}, lambda _: None)
    # One to begin with, three warm-ups and two runs of the graph.
    assert num_runs == 1 + 5 * 10
    assert measured.results[0].relative_error is None and len(measured.results[0].times_us) == 2


def fake_result() -> WorkloadResult:
    """prefill_1x8k, whose floor is 696 us, as if measured."""
    return WorkloadResult(
        WORKLOADS["prefill_1x8k"],
        [
            Result("onewave", [800.0, 790.0, 3000.0], [20.0], [30.0], 0.0021),
            Result("fa3", [886.0], [19.0], [25.0], 0.0021),
            Result("fi_batch", [500.0], [900.0], [950.0], math.inf),
            Result("fi_split", failure="RuntimeError: no nvcc [sic]"),
            Result("fa3_split", failure="needs both", is_unsupported=True),
            Result("fa3_streams16", failure="needs both", is_unsupported=True),
        ],
        [1755, 1980, 1740],
    )


def test_tables() -> None:
    console = Console(file=StringIO(), width=100)
    print_result(console, fake_result())
    console.print(summary_table([fake_result()]))
    shown = console.file.getvalue()
    rows = [line.split() for line in shown.splitlines()]
    assert ["onewave", "800.0", "0.87", "210", "687", "20.0", "0.00210"] in rows
    assert ["fa3", "886.0", "0.79", "189", "621", "19.0", "0.00210", "0.903"] in rows
    assert ["fi_batch", "500.0", "1.39", "336", "1100", "900.0", "NaN", "WRONG", "1.600"] in rows
    assert ["prefill_1x8k", "696.0", "800.0", "0.87", "fa3", "886.0", "0.903"] in rows
    assert "SM clock 1755 MHz (1740 to 1980)" in shown
    assert "fi_split failed: RuntimeError: no nvcc [sic]" in shown
    assert "left out: fa3_split, fa3_streams16 (needs both)" in shown


def test_record(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write_json(path, {"commit": "0123abc", "seed": 0}, [fake_result()])
    record = json.loads(path.read_text())
    assert record["commit"] == "0123abc"
    (workload,) = record["workloads"]
    assert workload["requests"] == [[8192, 8192, 1]] and workload["sm_clocks_mhz"] == [1755, 1980, 1740]
    ours, fa3, wrong, failed, left_out, _ = workload["systems"]
    assert ours["us"] == 800 and ours["min_us"] == 790 and ours["plan_us"] == 20
    assert ours["times_us"] == [800, 790, 3000] and ours["ours_over_this"] is None
    assert fa3["ours_over_this"] == pytest.approx(800 / 886, abs=1e-4)
    assert wrong["relative_error"] == "inf" and not wrong["is_right"]
    assert failed == {"system": "fi_split", "failure": "RuntimeError: no nvcc [sic]"}
    assert left_out == {"system": "fa3_split", "unsupported": "needs both"}


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from onewave.bench.plot import write_plot

    write_plot(tmp_path / "shares.png", [fake_result(), fake_result()], "fake")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def fa3_operators() -> None:
    """FlashAttention-3's operators by name and signature, computed plainly."""
    library = torch.library.Library("_vllm_fa3_C", "DEF")  # noqa: TOR901 -- goes with the process
    library.define(FA3_FWD)
    library.define(FA3_PLAN)

    def fwd(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> list[torch.Tensor]:
        out, cu_seqlens_q, seqused_k, block_table = rest[3], rest[4], rest[8], rest[11]
        softmax_scale, is_causal = rest[20], rest[21]
        for i, kv_len in enumerate(seqused_k.tolist()):
            rows = slice(int(cu_seqlens_q[i]), int(cu_seqlens_q[i + 1]))
            keys, values = (
                side[block_table[i].long()].flatten(0, 1)[:kv_len].float().transpose(0, 1) for side in (k, v)
            )
            group_size = q.shape[1] // k.shape[2]
            keys, values = (side.repeat_interleave(group_size, dim=0) for side in (keys, values))
            queries = q[rows].float().transpose(0, 1)
            if q.dtype == torch.float8_e4m3fn:
                q_descale, k_descale, v_descale = (
                    descale[i].repeat_interleave(group_size)[:, None, None] for descale in rest[17:20]
                )
                queries, keys, values = queries * q_descale, keys * k_descale, values * v_descale
            result, _ = attend(queries, keys, values, is_causal, softmax_scale)
            out[rows] = result.transpose(0, 1).to(out.dtype)
        return [out]

    library.impl("fwd", fwd, "CPU")
    library.impl("get_scheduler_metadata", lambda *_: torch.zeros(1, dtype=torch.int32), "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("fa3_operators")
@pytest.mark.parametrize("dtypes", [{}, FP8_QUERIES])
def test_flash_attention3_is_called_rightly(dtypes: dict[str, torch.dtype]) -> None:
    workload = replace(tiny((70, 1), (40, 9), (5, 1), (8, 8)), **dtypes)
    systems = flash_attention3.systems(None)
    chosen = {name: systems[name] for name in ("fa3", "fa3_split")}
    measured = Harness(CPU, num_runs=1, seed=0).measure(workload, chosen, lambda _: None)
    for result in measured.results:
        assert result.failure is None and result.is_right, result


@pytest.mark.usefixtures("fa3_operators")
def test_flash_attention3_has_one_type_for_all() -> None:
    workload = replace(tiny((70, 1), (40, 9)), kv_dtype=torch.float8_e4m3fn)
    measured = Harness(CPU, num_runs=1, seed=0).measure(
        workload, {"onewave": Onewave, **flash_attention3.systems(None)}, lambda _: None
    )
    ours, *peers = measured.results
    assert ours.failure is None and ours.is_right
    assert all(peer.is_unsupported and "of the queries' type" in str(peer.failure) for peer in peers)


def test_flashinfer_has_no_fp8_queries() -> None:
    workload = replace(tiny((70, 1), (40, 9)), **FP8_QUERIES)
    measured = Harness(CPU, num_runs=1, seed=0).measure(workload, flashinfer.systems(), lambda _: None)
    for result in measured.results:
        assert result.is_unsupported and result.failure == "is measured with queries of 16 bits"


def test_split_needs_both_kinds() -> None:
    split = {"fa3_split": flash_attention3.systems(None)["fa3_split"]}
    measured = Harness(CPU, num_runs=1, seed=0).measure(tiny((70, 1)), split, lambda _: None)
    assert measured.results[0].is_unsupported


def test_command_line_lists() -> None:
    done = run_cli("bench", "--list")
    assert done.returncode == 0, done.stderr
    for name in [*WORKLOADS, "onewave", "fa3_streams44", "fi_batch"]:
        assert name in done.stdout


def test_command_line_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    done = run_cli("bench", "--device", "cpu", "--runs", "2", "--json", str(path), "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "onewave and the best peer" in done.stdout
    record = json.loads(path.read_text())
    assert record["commit"] == "abc" and record["machine"]["device"] == "cpu" and record["num_runs"] == 2
    assert record["workloads"][0]["workload"] == SMOKE and record["workloads"][0]["systems"][0]["is_right"]


def test_command_line_without_a_gpu() -> None:
    done = run_cli("bench")
    assert done.returncode == 2 and "No GPU: " in done.stdout and "--device cpu" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workloads", "nothing"), "workload 'nothing' matches no name"),
        (
            ("--systems", "fa4"),
            "system 'fa4' matches none of onewave, onewave_fixed, onewave_unshared,",
        ),
        (("--runs", "0"), "--runs is 0; it must be 1 or more"),
        (("--fa3-library", "no.so"), "--fa3-library is 'no.so'; there is no such file"),
    ],
)
def test_command_line_errors(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().out


def test_a_failure_names_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    error = RuntimeError(f"in /home/someone/.cache/x\nand {sys.prefix}/include/y, not in /usr/z")
    assert one_line(error) == "RuntimeError: in ~/.cache/x and <prefix>/include/y, not in /usr/z"
    monkeypatch.setenv("HOME", "/")
    assert one_line(RuntimeError("in /tmp/x")) == "RuntimeError: in /tmp/x"
