"""The command line: `python -m onewave` with demo, info, plan, profile, calibrate, bench, generate or cmake-dir."""

import argparse
from collections.abc import Sequence

import onewave
from onewave._cli.calibrate import add_calibrate_arguments, run_calibrate
from onewave._cli.cmake_dir import show_cmake_dir
from onewave._cli.demo import run_demo
from onewave._cli.generate import add_generate_arguments, run_generate
from onewave._cli.info import show_info
from onewave._cli.plan import add_plan_arguments, run_plan
from onewave._cli.profile import add_profile_arguments, run_profile
from onewave.bench.command import add_arguments, run_bench


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m onewave", description="Attention of one LLM serving step."
    )
    parser.add_argument("--version", action="version", version=f"onewave {onewave.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run a serving step and check it against a plain computation")
    demo.add_argument(
        "--device", choices=["cuda", "cpu"], help="default: cuda where onewave can use a GPU, else cpu"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the random inputs (default: %(default)s)")
    info = commands.add_parser("info", help="print versions, driver, device and the kernels inside")
    info.add_argument("--markdown", action="store_true", help="only the kernels, as the README has them")
    add_plan_arguments(
        commands.add_parser("plan", help="plan a batch and draw it: which CTA does what, and for how long")
    )
    add_profile_arguments(
        commands.add_parser("profile", help="run a batch with the profiler: where the time of each SM went")
    )
    add_arguments(
        commands.add_parser("bench", help="measure named workloads, beside other attention kernels")
    )
    add_calibrate_arguments(
        commands.add_parser(
            "calibrate", help="measure what work costs on this GPU, for the planner (minutes)"
        )
    )
    add_generate_arguments(
        commands.add_parser(
            "generate", help="let a model of Hugging Face transformers generate, and time its attention"
        )
    )
    commands.add_parser("cmake-dir", help="print the directory of the CMake package, for -Donewave_DIR=")
    options = parser.parse_args(arguments)
    if options.command == "info":
        return show_info(options.markdown)
    if options.command == "plan":
        return run_plan(options)
    if options.command == "profile":
        return run_profile(options)
    if options.command == "calibrate":
        return run_calibrate(options)
    if options.command == "bench":
        return run_bench(options)
    if options.command == "generate":
        return run_generate(options)
    if options.command == "cmake-dir":
        return show_cmake_dir()
    return run_demo(options.device, options.seed)
