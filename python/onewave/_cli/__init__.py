"""The command line: `python -m onewave demo` and `python -m onewave info`."""

import argparse
from collections.abc import Sequence

from onewave._cli.demo import run_demo
from onewave._cli.info import show_info


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m onewave", description="Attention of one LLM serving step."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run a serving step and check it against a plain computation")
    demo.add_argument(
        "--device", choices=["cuda", "cpu"], help="default: cuda where onewave can use a GPU, else cpu"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the random inputs (default: %(default)s)")
    commands.add_parser("info", help="print versions, driver, device and the kernels inside")
    options = parser.parse_args(arguments)
    if options.command == "info":
        return show_info()
    return run_demo(options.device, options.seed)
