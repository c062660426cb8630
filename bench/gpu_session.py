"""What is run on a machine with a GPU, in one command: the gpu tests and, where asked, compute-sanitizer. Writes one
JSON record: GPU, driver, versions, commit, counts and durations.

    python3 bench/gpu_session.py --commit "$(git rev-parse HEAD)" --output bench/results/gpu_tests_h200.json \\
        --sanitizer memcheck --sanitizer racecheck

racecheck follows the kernel's arrivals only in a wheel built with `pip wheel . -C cmake.define.ONEWAVE_SANITIZER=ON`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onewave
import torch
from onewave import _core

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
# What these import need not be on a machine with a GPU.
NOT_HERE = ("test_sass.py", "test_wheel.py", "test_workflow.py")
ERROR_STATUS = 9
SLOWEST_SHOWN = 10


def machine() -> dict[str, Any]:
    info = _core.device_info(torch.cuda.current_device())
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": info.name,
        "num_sms": info.num_sms,
        "driver": driver,
        "driver_cuda": f"{info.driver_version // 1000}.{info.driver_version % 1000 // 10}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onewave": onewave.__version__,
    }


def read_junit(report: Path) -> dict[str, Any]:
    """Counts, what failed and what took longest, of a pytest report."""
    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    num_cases: dict[str, int] = {}
    seeds: dict[str, int] = {}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        failure = case.find("failure")
        problem = failure if failure is not None else case.find("error")
        if problem is not None:
            counts["failed"] += 1
            failures.append({"test": name, "message": problem.get("message", "")[:1000]})
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
        properties = {
            record.get("name"): int(record.get("value", "0"))
            for record in case.iterfind("./properties/property")
            if record.get("name") in ("cases", "seed")
        }
        if "cases" in properties:
            function = str(case.get("name")).partition("[")[0]
            num_cases[function] = num_cases.get(function, 0) + properties["cases"]
            seeds[str(case.get("name"))] = properties["seed"]
    slowest = sorted(cases, key=lambda case: -float(case.get("time", "0")))[:SLOWEST_SHOWN]
    return {
        **counts,
        "cases": num_cases,
        "seeds": seeds,
        "failures": failures,
        "slowest_s": {f"{case.get('name')}": float(case.get("time", "0")) for case in slowest},
    }


def run_tests(pytest_args: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # xunit1 is the form that has the properties of a test: its seed, its number of cases.
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "junit_family=xunit1"]
        command += [f"--junitxml={report}", str(TESTS), *(f"--ignore={TESTS / name}" for name in NOT_HERE)]
        command += pytest_args
        begin = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        result = {"command": "pytest -m gpu " + " ".join(pytest_args), "status": status}
        result["duration_s"] = round(time.monotonic() - begin, 1)
        return result | (read_junit(report) if report.exists() else {})


def run_sanitizer(tool: str, timeout_s: float) -> dict[str, Any]:
    command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=onewave_"]
    command += ["--error-exitcode", str(ERROR_STATUS)]
    suppressions = TESTS / "sanitizer" / f"{tool}.xml"
    if suppressions.exists():
        command += ["--suppressions", str(suppressions)]
    command += [sys.executable, str(TESTS / "sanitizer" / "mixed_batch.py")]
    # Every tensor its own allocation, or a write past one lands unseen in the allocator's cached blocks.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, output = None, (error.stdout or b"").decode(errors="replace")
    print(output, flush=True)
    summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    return {
        "tool": tool,
        "status": status,
        "summary": summary[-1] if summary else None,
        "checked_runs": len(re.findall(r": right$", output, flags=re.MULTILINE)),
        "suppressions": suppressions.name if suppressions.exists() else None,
        "duration_s": round(time.monotonic() - begin, 1),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", required=True, help="what is tested; the machine may have no .git")
    parser.add_argument("--output", required=True, type=Path, help="the JSON record")
    parser.add_argument(
        "--build", default="release", help="what the wheel was built as; racecheck needs 'sanitizer'"
    )
    parser.add_argument("--no-tests", action="store_true", help="only the sanitizers")
    parser.add_argument("--sanitizer", action="append", default=[], choices=SANITIZERS)
    parser.add_argument("--sanitizer-timeout", type=float, default=240.0, help="seconds for each tool")
    parser.add_argument("pytest_args", nargs="*", help="for pytest, after --")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    record: dict[str, Any] = {
        "commit": args.commit,
        "build": args.build,
        "date": time.strftime("%Y-%m-%d"),
        **machine(),
    }
    if not args.no_tests:
        record["tests"] = run_tests(args.pytest_args)
    record["sanitizers"] = [run_sanitizer(tool, args.sanitizer_timeout) for tool in args.sanitizer]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    statuses = [sanitizer["status"] for sanitizer in record["sanitizers"]]
    statuses.append(0 if args.no_tests else record["tests"]["status"])
    return 0 if all(status == 0 for status in statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
