"""Runs a batch with the profiler: where the time of each SM went, as a table, a trace and a picture."""

import argparse
from pathlib import Path

import torch
from rich.console import Console

import onewave
from onewave._cli.batch_arguments import add_batch_arguments, workload_of
from onewave._matplotlib import MissingMatplotlib, import_pyplot
from onewave._validate import check_int
from onewave.bench.system import Onewave
from onewave.bench.tensors import BatchTensors, make_tensors
from onewave.bench.workload import Workload
from onewave.trace import Trace
from onewave.workspace import resolve_device

NUM_WARMUPS = 3


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    add_batch_arguments(parser)
    parser.add_argument("--device", default="cuda", help="cpu: the executor, whose threads are shown as SMs")
    parser.add_argument(
        "--layers",
        type=int,
        default=1,
        help="runs that are recorded, one after another (default: %(default)s)",
    )
    parser.add_argument(
        "--graph", action="store_true", help="capture the layers in one CUDA graph, and record its replay"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the trace, JSON for https://ui.perfetto.dev"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture of the last layer, png, svg or pdf by its suffix; may be given several times (needs matplotlib)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random values (default: %(default)s)")


def run_profile(options: argparse.Namespace) -> int:
    """The exit status: 2 for arguments or a device that cannot be used."""
    console = Console()
    try:
        if options.plot:
            import_pyplot("--plot")
        workload = workload_of(options)
        check_int("layers", options.layers, 1)
        device = resolve_device(options.device)
        if options.graph and device.type != "cuda":
            raise ValueError("--graph needs a GPU")
        trace = _profile(make_tensors(workload, str(device), options.seed), options.layers, options.graph)
        _show(console, workload, trace, options)
    except onewave.DeviceError as error:
        console.print(f"No GPU: {error}. --device cpu profiles the executor.", markup=False)
        return 2
    except (ValueError, OSError, MissingMatplotlib) as error:
        console.print(f"profile: {error}", style="red", highlight=False, markup=False)
        return 2
    return 0


def _show(console: Console, workload: Workload, trace: Trace, options: argparse.Namespace) -> None:
    console.print(f"{workload.name}: {workload.describe()}", highlight=False, markup=False)
    console.print(trace.table(options.layers - 1))
    if options.output is not None:
        trace.write(options.output)
        console.print(f"wrote {options.output}", highlight=False, markup=False)
    for path in options.plot:
        trace.draw(path, options.layers - 1)
        console.print(f"wrote {path}", highlight=False, markup=False)


def _profile(tensors: BatchTensors, num_layers: int, in_graph: bool) -> Trace:
    num_warmups = NUM_WARMUPS if tensors.device.type == "cuda" else 0
    system = Onewave(tensors, uses_profiler=True, max_profiled_runs=max(num_layers, num_warmups))

    def run(times: int) -> None:
        for _ in range(times):
            system.run()

    system.plan()
    run(num_warmups)
    system.plan()
    if in_graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(num_layers)
        graph.replay()
    else:
        run(num_layers)
    return system.attention.trace()
