"""Times several builds of onewave on the same workloads, each beside FlashAttention-3 in its own process.

    python3 bench/compare.py --build base=base.whl --build turns=turns.whl --fa3-library fa3.so \\
        --workloads 'prefill_1x8k,prefill_8x2k' --output record.json

Clocks move from process to process: what compares two builds is the ratio to FlashAttention-3 beside each. Builds
take turns, `--rounds` times. A build is a wheel, installed into a folder of its own without its dependencies, or
a record that `python -m onewave bench --json` wrote, which is only added to the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# What a record keeps of a workload, beside the times.
Measured = dict[str, dict[str, list[float]]]  # workload -> system -> microseconds, in the order of the runs


def install(wheel: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)
    return folder


def measure(packages: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One process: the JSON of the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", "onewave", "bench", "--no-check", "--systems", "onewave,fa3"]
        command += ["--workloads", options.workloads, "--runs", str(options.runs), "--json", str(record)]
        command += ["--fa3-library", str(options.fa3_library)]
        paths = filter(None, (str(packages), os.environ.get("PYTHONPATH")))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{packages}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads(record.read_text())


def times_of(record: dict[str, Any]) -> Measured:
    return {
        workload["workload"]: {
            system["system"]: [round(us, 1) for us in system["times_us"]]
            for system in workload["systems"]
            if "times_us" in system
        }
        for workload in record["workloads"]
    }


def show(builds: dict[str, list[Measured]]) -> None:
    table = Table("workload", "build", "us", "time / FlashAttention-3's, each round")
    for workload in dict.fromkeys(name for rounds in builds.values() for times in rounds for name in times):
        for build, rounds in builds.items():
            medians = [
                {system: statistics.median(us) for system, us in times[workload].items()}
                for times in rounds
                if workload in times
            ]
            if medians:
                best = min(median["onewave"] for median in medians)
                ratios = [median["onewave"] / median["fa3"] for median in medians if "fa3" in median]
                table.add_row(workload, build, f"{best:.0f}", " ".join(f"{ratio:.3f}" for ratio in ratios))
    Console().print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--build", action="append", required=True, metavar="NAME=FILE", help="wheel or record"
    )
    parser.add_argument("--workloads", default="prefill_*,chunk_2k_on_32k,full_2x4k")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fa3-library", type=Path, help="needed where a build is a wheel")
    parser.add_argument("--output", required=True, type=Path, help="the JSON record")
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    builds: dict[str, list[Measured]] = {}
    wheels: dict[str, Path] = {}
    machine: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for build in options.build:
            name, _, file = build.partition("=")
            if file.endswith(".whl"):
                wheels[name] = install(Path(file), Path(folder) / name)
            else:
                record = json.loads(Path(file).read_text())
                machine = record["machine"]
                builds.setdefault(name, []).append(times_of(record))
        for _ in range(options.rounds if wheels else 0):
            for name, packages in wheels.items():
                record = measure(packages, options)
                machine = record["machine"]
                builds.setdefault(name, []).append(times_of(record))
    options.output.write_text(json.dumps({"machine": machine, "builds": builds}) + "\n")
    show(builds)


if __name__ == "__main__":
    main()
