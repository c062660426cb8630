"""`python -m onewave calibrate`: what it reads from times, where the times follow the model."""

import json
from pathlib import Path
from typing import Any

import onewave
import pytest
import torch
from onewave import _core
from onewave._calibration import to_core
from onewave._cli.calibrate import Kernel, Run, calibrate
from onewave._cli.plan import plan_workload, predict_workload
from onewave.bench.workload import Workload
from onewave.bench.workloads import WORKLOADS
from onewave.plan_format import Plan
from rich.console import Console
from test_cli import run_cli

TRUTH: dict[str, Any] = {
    "gpu": "GPU of the test",
    "launch_us": 6.0,
    "split_us": 1.5,
    "partial_gb_per_s": 70.0,
    "memory": [
        {"num_ctas": 33, "gb_per_s": 2600},
        {"num_ctas": 66, "gb_per_s": 2900},
        {"num_ctas": 132, "gb_per_s": 3300},
    ],
    "kernels": [
        {
            "head_dim": head_dim,
            "loader": loader,
            "q_bytes": q_bytes,
            "kv_bytes": kv_bytes,
            "wide_step_us": step_us * part,
            "wide_unit_us": 2.5,
            "wide_slowdown": slowdown,
            "wide_unit_slowdown": 3.0,
            "narrow_unit_us": 1.2,
            "narrow_gb_per_s": [rate * kv_bytes / 2 for rate in rates],
        }
        for q_bytes, kv_bytes, part in ((2, 2, 1.0), (2, 1, 1.3), (1, 1, 0.8))
        for head_dim, loader, step_us, slowdown, rates in (
            (64, "tma", 1.1, 0.3, [80.0, 70.0, 40.0]),
            (64, "gather", 1.2, 0.4, [35.0, 32.0, 30.0]),
            (128, "tma", 1.6, 0.15, [90.0, 80.0, 50.0]),
            (128, "gather", 1.8, 0.9, [55.0, 50.0, 40.0]),
        )
    ],
}


class ModelBench:
    """A GPU on which everything takes as long as the truth says."""

    gpu = TRUTH["gpu"]
    device = torch.device("cpu")
    num_ctas = 132

    def __init__(self) -> None:
        self.points: list[str] = []

    def run(self, workload: Workload, calibration: dict[str, Any]) -> Run:
        plan = plan_workload(workload, to_core(calibration))
        bars = predict_workload(plan, workload, to_core(TRUTH))
        self.points.append(workload.describe())
        return Run(max(bar.begin_us + bar.us for bar in bars), plan)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return calibrate(ModelBench(), Console(quiet=True))


def test_times_of_the_model_give_its_numbers(record: dict[str, Any]) -> None:
    assert record["gpu"] == TRUTH["gpu"]
    assert record["launch_us"] == pytest.approx(TRUTH["launch_us"], abs=1.5)
    assert record["split_us"] == pytest.approx(TRUTH["split_us"], abs=0.8)
    assert record["partial_gb_per_s"] == pytest.approx(TRUTH["partial_gb_per_s"], rel=0.6)
    for found, true in zip(record["kernels"], TRUTH["kernels"], strict=True):
        assert Kernel.of(found) == Kernel.of(true)
        assert found["wide_step_us"] == pytest.approx(true["wide_step_us"], rel=0.03)
        assert found["wide_unit_us"] == pytest.approx(true["wide_unit_us"], rel=0.3)
        assert found["narrow_unit_us"] == pytest.approx(true["narrow_unit_us"], rel=0.3)
        # Beside the slow gathered rows of fp8 the others multiply for a part of the time alone.
        rates = pytest.approx(true["narrow_gb_per_s"], rel=0.08 if found["kv_bytes"] == 2 else 0.15)
        assert found["narrow_gb_per_s"] == rates
        # Else the memory is the bound of those batches, and hides it, or narrow items take longer than what it slows.
        if (found["head_dim"], found["kv_bytes"]) == (128, 2):
            assert found["wide_slowdown"] == pytest.approx(true["wide_slowdown"], abs=0.3)
            assert found["wide_unit_slowdown"] >= 2.0  # the guess is 1, the truth 3; beyond it little changes
    found_memory = {point["num_ctas"]: point["gb_per_s"] for point in record["memory"]}
    for point in TRUTH["memory"]:
        assert found_memory[point["num_ctas"]] == pytest.approx(point["gb_per_s"], rel=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "hybrid_qwen7b_p16",
        "lognormal_b64_chunk2k",
        "short_b24_prompt256",
        "fi_hybrid_llama70b_p1",
        "fi_hybrid_qwenmoe_d64_p1",
        "hybrid_qwen7b_p16_fp8",
        "hybrid_qwen7b_p16_fp8q",
    ],
)
def test_the_record_plans_and_predicts_as_the_truth(record: dict[str, Any], name: str) -> None:
    workload = WORKLOADS[name]

    def makespan_us(plan: bytes, calibration: dict[str, Any]) -> float:
        return max(bar.begin_us + bar.us for bar in predict_workload(plan, workload, to_core(calibration)))

    plan = plan_workload(workload, to_core(record))
    true_us = makespan_us(plan, TRUTH)
    assert makespan_us(plan, record) == pytest.approx(true_us, rel=0.1)
    assert true_us <= 1.05 * makespan_us(plan_workload(workload, to_core(TRUTH)), TRUTH)


def plan_with(file: Path) -> Plan:
    attention = onewave.BatchAttention(device="cpu", calibration=file)
    qo_indptr = torch.tensor([0, *range(1, 65), 64 + 4096], dtype=torch.int32)
    kv_indptr = torch.arange(66, dtype=torch.int32) * 512
    kv_indices = torch.arange(65 * 512, dtype=torch.int32)
    kv_len_arr = torch.full((65,), 8192, dtype=torch.int32)
    attention.plan(qo_indptr, kv_indptr, kv_indices, kv_len_arr, 32, 8, 128, 128, 16, causal=True)
    return Plan(attention.plan_bytes())


def test_a_plan_goes_by_the_file(tmp_path: Path) -> None:
    """Where one CTA draws little, more of them stream."""
    file = tmp_path / "gpu.json"
    nums_narrow_ctas = []
    for rate in (90.0, 30.0):
        kernels = [kernel | {"narrow_gb_per_s": [rate] * 3} for kernel in TRUTH["kernels"]]
        file.write_text(json.dumps(TRUTH | {"kernels": kernels}))
        plan = plan_with(file)
        assert (plan.ctas["predicted_us"] >= TRUTH["launch_us"]).all()
        nums_narrow_ctas.append(int(plan.header["num_narrow_ctas"]))
    assert 0 < nums_narrow_ctas[0] < nums_narrow_ctas[1] < 132


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": []}, "every rate and time must be positive"),
        ({"memory": [{"num_ctas": 5, "gb_per_s": 1}, {"num_ctas": 5, "gb_per_s": 2}]}, "points ascend"),
        ({"launch_us": "soon"}, "calibration .*gpu.json"),
        ({"kernels": []}, "has no kernel that loads by TMA"),
        ({"kernels": [{}]}, "calibration .*gpu.json: KeyError"),
    ],
)
def test_a_file_that_is_no_calibration(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(TRUTH | change))
    with pytest.raises(ValueError, match=message):
        plan_with(file)
    file.write_text("no JSON")
    with pytest.raises(ValueError, match="not JSON"):
        plan_with(file)


def test_the_library_knows_its_gpus() -> None:
    names = [calibration.gpu for calibration in _core.calibrations()]
    assert len(names) == len(set(names)) >= 2
    for name in names:
        assert _core.calibration_of(name).gpu == name
    assert "H100" in _core.calibration_of("NVIDIA H100 PCIe").gpu
    assert "H200" in _core.calibration_of("NVIDIA GH200 480GB").gpu
    assert "H200" in _core.calibration_of("").gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it takes minutes")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run_cli("calibrate", "--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 2 and "calibrate: no NVIDIA driver was found" in done.stdout
    assert "Traceback" not in done.stderr and not (tmp_path / "gpu.json").exists()
