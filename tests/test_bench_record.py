"""Records of the benchmark: what is read is what was written, and what the committed ones hold is what is computed."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onewave.bench.ceilings import H100, H200
from onewave.bench.record import read_record
from onewave.bench.reference import max_relative_error
from onewave.bench.result import Result, WorkloadResult, write_json
from onewave.bench.workload import Request, Workload
from test_bench import fake_result

RESULTS = Path(__file__).resolve().parent.parent / "bench/results"
FP8 = torch.float8_e4m3fn
# Records from before one of these was measured lack it.
LATER_KEYS = ("window_left", "logits_soft_cap", "kv_dtype", "prefix_len")

TEXTS = st.text(max_size=20)
TIMES = st.lists(st.floats(0.1, 1e7), min_size=1, max_size=6)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    lens = st.integers(0, 10000)
    request = st.builds(Request, lens, lens)
    groups = draw(st.lists(st.tuples(request, st.integers(1, 4)), max_size=5))
    num_kv_heads = draw(st.integers(1, 8))
    dtype, kv_dtype = draw(
        st.sampled_from([(torch.bfloat16, torch.bfloat16), (torch.float16, FP8), (FP8, FP8)])
    )
    return Workload(
        draw(TEXTS),
        tuple(request for request, count in groups for _ in range(count)),
        num_qo_heads=num_kv_heads * draw(st.integers(1, 8)),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([64, 128, 256])),
        page_size=draw(st.sampled_from([1, 16, 17])),
        causal=draw(st.booleans()),
        window_left=draw(st.sampled_from([-1, 0, 1023])),
        logits_soft_cap=draw(st.sampled_from([0.0, 50.5])),
        dtype=dtype,
        kv_dtype=kv_dtype,
        num_ctas=draw(st.none() | st.integers(1, 132)),
        num_graph_nodes=draw(st.integers(0, 50)),
        lens_seed=draw(st.none() | st.integers(0, 9)),
    )


@st.composite
def workload_results(draw: st.DrawFn) -> WorkloadResult:
    workload = draw(workloads())
    bound = max_relative_error(workload)
    timed = st.builds(
        Result,
        TEXTS,
        TIMES,
        TIMES | st.just([]),
        TIMES | st.just([]),
        st.none() | st.floats(0, 1) | st.just(float("inf")),
        st.just(bound),
    )
    failed = st.builds(
        Result, TEXTS, failure=TEXTS, is_unsupported=st.booleans(), max_relative_error=st.just(bound)
    )
    ours = st.builds(Result, st.just("onewave"), TIMES, TIMES, TIMES, max_relative_error=st.just(bound))
    results = draw(st.lists(timed | failed, max_size=4)) + draw(st.lists(ours, max_size=1))
    return WorkloadResult(workload, results, draw(st.lists(st.integers(100, 2000), max_size=4)), H100)


def read_and_write(path: Path) -> dict[str, Any]:
    record = read_record(path)
    again = path.with_name("again.json")
    write_json(again, record.header, record.results)
    return dict(json.loads(again.read_text()))


@settings(max_examples=25, deadline=None)
@given(st.lists(workload_results(), min_size=1, max_size=3), TEXTS)
def test_what_is_read_is_what_was_written(results: list[WorkloadResult], commit: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        header = {"commit": commit, "machine": {"device": "NVIDIA H100", "driver": None}, "seed": 3}
        write_json(path, header, results)
        record = read_record(path)
        assert record.header == header
        for read, written in zip(record.results, results, strict=True):
            assert read.workload == written.workload
            assert read.ceilings == written.ceilings and read.clocks_mhz == written.clocks_mhz
            assert read.floor_us == written.floor_us
            for ours, theirs in zip(read.results, written.results, strict=True):
                assert (ours.system, ours.failure, ours.is_unsupported) == (
                    theirs.system,
                    theirs.failure,
                    theirs.is_unsupported,
                )
                assert ours.is_timed == theirs.is_timed
                assert ours.relative_error == theirs.relative_error and ours.is_right == theirs.is_right
                assert ours.times_us == [round(us, 2) for us in theirs.times_us]
        assert read_and_write(path) == json.loads(path.read_text())


def test_of_a_record_without_workloads(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", {"seed": 1}, [])
    record = read_record(tmp_path / "record.json")
    assert record.header == {"seed": 1} and record.results == []


def committed_records() -> list[Path]:
    found = [path for path in sorted(RESULTS.glob("*.json")) if "workloads" in json.loads(path.read_text())]
    assert RESULTS / "bench_h100.json" in found and len(found) >= 7
    return found


@pytest.mark.parametrize("path", committed_records(), ids=lambda path: path.stem)
def test_committed_records_hold_what_is_computed(path: Path, tmp_path: Path) -> None:
    """Bytes, FLOP, floors, shares, ratios and who is right; medians to a unit in the last place, since the first ones
    were taken before times were rounded."""
    before = json.loads(path.read_text())
    copy = tmp_path / path.name
    copy.write_text(path.read_text())
    after = read_and_write(copy)
    for old, new in zip(before.pop("workloads"), after.pop("workloads"), strict=True):
        assert not set(new) - set(old) - set(LATER_KEYS) and not set(old) - set(new)
        for measured, computed in zip(old.pop("systems"), new.pop("systems"), strict=True):
            assert set(measured) == set(computed)
            last_places = {"us": 0.011, "share_of_floor": 2e-4, "gb_per_s": 0.4, "tflop_per_s": 0.11}
            last_places["ours_over_this"] = 2e-3
            for key, value in measured.items():
                assert computed[key] == (
                    pytest.approx(value, abs=last_places[key])
                    if key in last_places and value is not None
                    else value
                ), (old["workload"], measured["system"], key)
        assert {key: new[key] for key in old} == old
    assert after == before


def test_a_graph_of_a_microsecond_has_a_share_to_its_last_place() -> None:
    """Shares and ratios are of the times as they are written."""
    result = fake_result()
    result.results[0].times_us = [1.004]
    result.results[1].times_us = [2.0]
    ours, peer, *_ = result.to_json()["systems"]
    assert ours["us"] == 1.0 and peer["ours_over_this"] == 0.5


def damaged(**changes: Any) -> dict[str, Any]:
    entry = fake_result().to_json()
    return {"ceilings": [vars(H200)], "workloads": [entry | changes]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "list indices must be"),
        ({"workloads": []}, "it has no 'ceilings'"),
        ({"ceilings": [vars(H100), vars(H200)], "workloads": []}, "ceilings must be those of one GPU"),
        (damaged(requests=[[1, 2]]), "not enough values"),
        (damaged(dtype="load"), "a dtype is 'load'"),
        (damaged(workload=3), "a name is 3"),
        (damaged(systems=[{"system": "fa3"}]), "it has no 'failure'"),
        (damaged(systems=[{"system": "fa3", "times_us": [0]}]), "a time is 0; it must be a positive number"),
        (damaged(systems=[{"system": "fa3", "times_us": ["1"]}]), "a time is '1'"),
    ],
)
def test_what_is_no_record(record: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is no record of bench --json") as caught:
        read_record(path)
    assert message in str(caught.value)
