"""The planner's predicted makespan against a record's measured times: how good the cost model is. Needs no GPU.

    python3 bench/prediction.py bench/results/bench_h100.json

A workload that is a graph of several runs is left out: its time is not that of one launch.
"""

import argparse
import json
from pathlib import Path

from onewave import _core
from onewave._cli.plan import plan_workload
from onewave._plan_records import ctas_of
from onewave.bench.result import OURS
from onewave.bench.workloads import WORKLOADS
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="what `python -m onewave bench --json` wrote")
    record = json.loads(parser.parse_args().record.read_text())
    calibration = _core.calibration_of(record["machine"]["device"])
    table = Table("workload", title=record["machine"]["device"])
    for heading in ("measured us", "predicted us", "error", "max / mean", "CTAs that begin narrow"):
        table.add_column(heading, justify="right")
    for measured in record["workloads"]:
        ours = next((system for system in measured["systems"] if system["system"] == OURS), {})
        workload = WORKLOADS.get(measured["workload"])
        if workload is None or workload.num_graph_nodes > 0 or "us" not in ours:
            continue
        ctas = ctas_of(plan_workload(workload, calibration))
        ends_us = [cta["predicted_us"] for cta in ctas]
        num_narrow = sum(cta["narrow_begin"] < cta["narrow_end"] for cta in ctas)
        table.add_row(
            workload.name,
            f"{ours['us']:.0f}",
            f"{max(ends_us):.0f}",
            f"{max(ends_us) / ours['us'] - 1:+.0%}",
            f"{max(ends_us) * len(ends_us) / sum(ends_us):.3f}",
            f"{num_narrow}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
