"""`python -m onewave calibrate`: what it reads from times, where the times follow the model."""

from typing import Any

import pytest
import torch
from onewave._calibration import to_core
from onewave._cli.calibrate import Run, calibrate
from onewave._cli.plan import plan_workload, predict_bars
from onewave.bench.workload import Workload
from onewave.bench.workloads import WORKLOADS
from rich.console import Console

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
            "wide_step_us": step_us,
            "wide_unit_us": 2.5,
            "wide_slowdown": slowdown,
            "narrow_unit_us": 1.2,
            "narrow_gb_per_s": rates,
        }
        for head_dim, loader, step_us, slowdown, rates in (
            (64, "tma", 1.1, 0.3, [80.0, 70.0, 40.0]),
            (64, "gather", 1.2, 0.4, [35.0, 32.0, 30.0]),
            (128, "tma", 1.6, 0.5, [90.0, 80.0, 50.0]),
            (128, "gather", 1.8, 0.7, [55.0, 50.0, 40.0]),
        )
    ],
}


class ModelBench:
    """A GPU on which everything takes as long as the truth says."""

    gpu = TRUTH["gpu"]
    device = torch.device("cpu")
    num_ctas = 132

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []

    def run(self, workload: Workload, calibration: dict[str, Any]) -> Run:
        plan = plan_workload(workload, to_core(calibration))
        bars = predict_bars(plan, workload, to_core(TRUTH))
        self.points.append({"workload": workload.describe()})
        return Run(max(bar.begin_us + bar.us for bar in bars), plan)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return calibrate(ModelBench(), Console(quiet=True))


def test_times_of_the_model_give_its_numbers(record: dict[str, Any]) -> None:
    assert record["gpu"] == TRUTH["gpu"]
    assert record["launch_us"] == pytest.approx(TRUTH["launch_us"], abs=1.5)
    assert record["split_us"] == pytest.approx(TRUTH["split_us"], abs=0.5)
    assert record["partial_gb_per_s"] == pytest.approx(TRUTH["partial_gb_per_s"], rel=0.3)
    for found, true in zip(record["kernels"], TRUTH["kernels"], strict=True):
        assert (found["head_dim"], found["loader"]) == (true["head_dim"], true["loader"])
        assert found["wide_step_us"] == pytest.approx(true["wide_step_us"], rel=0.03)
        assert found["wide_unit_us"] == pytest.approx(true["wide_unit_us"], rel=0.3)
        assert found["narrow_unit_us"] == pytest.approx(true["narrow_unit_us"], rel=0.3)
        assert found["narrow_gb_per_s"] == pytest.approx(true["narrow_gb_per_s"], rel=0.08)
        assert found["wide_slowdown"] == pytest.approx(true["wide_slowdown"], abs=0.1)
    found_memory = {point["num_ctas"]: point["gb_per_s"] for point in record["memory"]}
    for point in TRUTH["memory"]:
        assert found_memory[point["num_ctas"]] == pytest.approx(point["gb_per_s"], rel=0.1)


def test_the_record_predicts_as_the_truth(record: dict[str, Any]) -> None:
    for workload in (WORKLOADS["hybrid_qwen7b_p16"], WORKLOADS["lognormal_b64_chunk2k"]):
        plan = plan_workload(workload, to_core(record))
        predicted, true = (
            max(bar.begin_us + bar.us for bar in predict_bars(plan, workload, to_core(calibration)))
            for calibration in (record, TRUTH)
        )
        assert predicted == pytest.approx(true, rel=0.05)
