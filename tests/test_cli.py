"""The command line, as a user starts it, on a machine where no GPU can be used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onewave


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """With every GPU hidden and lines wide enough for any table."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "onewave", *arguments],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def row(output: str, name: str) -> str:
    """The value beside a name in a table."""
    match = re.search(rf"│ {name} +│ (.*?) +│", output)
    assert match, f"no row {name!r} in\n{output}"
    return match[1]


def test_demo_checks_itself_without_a_gpu() -> None:
    done = run_cli("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No GPU: " in done.stdout
    assert "The result is right." in done.stdout
    assert float(row(done.stdout, "relative error of out").split()[0]) <= 0.0030
    assert row(done.stdout, "CTAs") == "132"
    assert re.fullmatch(r"[1-9]\d* narrow, [1-9]\d* wide", row(done.stdout, "items"))
    assert float(row(done.stdout, "predicted makespan over mean")) >= 1.0
    assert re.fullmatch(r"\d{1,4}\.\d us|\d+\.\d ms", row(done.stdout, "time"))


def test_demo_on_a_gpu_that_is_not_there() -> None:
    done = run_cli("demo", "--device", "cuda")
    assert done.returncode == 2
    assert "No GPU: " in done.stdout and "Traceback" not in done.stderr


def test_info_without_a_gpu() -> None:
    done = run_cli("info")
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done.stdout, "onewave") == onewave.__version__
    assert row(done.stdout, "plan format").isdigit()
    assert row(done.stdout, "device").startswith("not usable: ")


def test_cmake_dir_is_one_line_for_the_shell() -> None:
    done = run_cli("cmake-dir")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(done.stdout.removesuffix("\n"), "onewaveConfig.cmake").is_file()


def test_no_command_is_an_error() -> None:
    done = run_cli()
    assert done.returncode == 2 and "usage: python -m onewave" in done.stderr


def test_help_and_version() -> None:
    done = run_cli("--help")
    assert done.returncode == 0 and all(command in done.stdout for command in ("demo", "info", "cmake-dir"))
    done = run_cli("--version")
    assert (done.returncode, done.stdout) == (0, f"onewave {onewave.__version__}\n")


def test_import_needs_no_more_than_torch() -> None:
    """Not the tables' library, nor numpy through onewave."""
    code = "import sys, torch; before = set(sys.modules); import onewave; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} <= {"onewave", "nanobind_backend"}
