"""What this GPU reads and multiplies at most: the numbers of python/onewave/bench/ceilings.py.

    python3 bench/probes/ceilings.py --output bench/results/ceilings_h100.json

Compiles read_bandwidth.cu with nvcc, or takes it compiled (`--read-bandwidth FILE`).
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("read_bandwidth.cu")
SIZE = 8192
NUM_PRODUCTS = 20


def read_bandwidth(program: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if program is None:
            program = Path(folder) / "read_bandwidth"
            flags = ["-std=c++20", "-O3", "-arch=sm_90a"]
            subprocess.run(["nvcc", *flags, "-o", str(program), str(SOURCE)], check=True)
        done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def matmul_tflop_per_s() -> list[float]:
    """Of bf16 products of random matrices, one after another: the clock falls as the power cap sets in."""
    a, b = (torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    rates = []
    for _ in range(NUM_PRODUCTS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.matmul(a, b)
        end.record()
        torch.cuda.synchronize()
        rates.append(2 * SIZE**3 / begin.elapsed_time(end) * 1e-9)
    return [round(rate, 1) for rate in rates[3:]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--read-bandwidth", type=Path, help="the program, compiled")
    options = parser.parse_args()
    rates = matmul_tflop_per_s()
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "read": read_bandwidth(options.read_bandwidth),
        "matmul_bf16_8192_tflop_per_s": {"median": statistics.median(rates), "all": rates},
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
