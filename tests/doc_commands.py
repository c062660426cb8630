"""The commands that the documentation shows: each is run, or else held against what CI runs. One of no known kind is an
error."""

import functools
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_here import run_cli_here
from find_nvcc import NvccError, find_nvcc
from needs import missing, needed_program

REPO = Path(__file__).resolve().parent.parent
# Of a terminal, whatever the one that runs the tests.
COLUMNS = 100


class Commands:
    """Runs them in a folder, with the machine's GPU hidden where `device` is "cpu"."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._has_gpu = device != "cpu"
        self._kinds: dict[str, Callable[[str], str]] = {
            r"python3 -m onewave (plan|profile|info|cmake-dir)\b": self._run_onewave,
            r"python3 -m onewave calibrate\b": self._refuse_without_gpu,
            r"python3 -m pip install ": _check_install,
            r"(cmake|\./build/\w+)( |$)": self._run_shell,
            r"(python3 )?(\.ci|tests|docs|bench)/": _check_script,
        }

    def run(self, line: str) -> str:
        """What the commands of a line print."""
        return "".join(map(self._run_one, filter(None, map(str.strip, line.split("&&")))))

    def _run_one(self, command: str) -> str:
        if command in _commands_of_ci():
            return ""
        for pattern, run in self._kinds.items():
            if re.match(pattern, command):
                return run(command)
        pytest.fail(f"unknown command: {command}")

    def _run_onewave(self, command: str) -> str:
        status, output = self._onewave_main(command)
        assert status == 0, f"{command}: {output}"
        return output

    def _onewave_main(self, command: str) -> tuple[int, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self._folder)
            done = run_cli_here(*shlex.split(command)[3:], columns=COLUMNS)
        return done.returncode, done.stdout

    def _refuse_without_gpu(self, command: str) -> str:
        """Minutes on a GPU. Without one it ends there, with its arguments read."""
        if self._has_gpu:
            return ""
        status, output = self._onewave_main(command)
        assert (status, output.partition(":")[0]) == (2, shlex.split(command)[3])
        return output

    def _run_shell(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            check=False,
            cwd=self._folder,
            env=os.environ | self._build_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def _build_environment(self) -> dict[str, str]:
        for program in ("cmake", "ninja", "c++"):
            needed_program(program)
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "CMAKE_GENERATOR": "Ninja",
            "CUDACXX": str(_nvcc()),
            "CMAKE_LIBRARY_PATH": str(self._folder / "cudart"),
            "CUDAToolkit_ROOT": str(_cuda_root()),
        }
        _name_cudart(self._folder / "cudart")
        return environment if self._has_gpu else environment | {"CUDA_VISIBLE_DEVICES": ""}


@functools.cache
def _commands_of_ci() -> frozenset[str]:
    lines = (REPO / ".ci/run").read_text().splitlines()
    return frozenset(part.strip() for line in lines for part in line.split("&&"))


@functools.cache
def _nvcc() -> Path:
    try:
        return find_nvcc().path
    except NvccError as error:
        missing(str(error))


def _cuda_root() -> Path:
    return _nvcc().resolve().parent.parent


def _name_cudart(folder: Path) -> None:
    """The registry's packages have the runtime's library by a name with its version alone, which CMake does not look for."""
    folder.mkdir(exist_ok=True)
    for library in _cuda_root().glob("lib/libcudart.so.*"):
        link = folder / "libcudart.so"
        if not link.exists():
            link.symlink_to(library)


def _check_install(command: str) -> str:
    """It names this package, by a folder or its name, and only extras that there are."""
    extras = importlib.metadata.metadata("onewave").get_all("Provides-Extra") or []
    for word in shlex.split(command)[4:]:
        match = re.fullmatch(r"(?:\.|onewave)(?:\[(\w+)\])?", word)
        assert match and match[1] in (None, *extras), f"{command}: installs {word}"
    return ""


def _check_script(command: str) -> str:
    """Those of the repository, which take too long or write to it: they are there."""
    (script, *_) = shlex.split(command.removeprefix("python3 "))
    assert (REPO / script).is_file(), f"{command}: there is no {script}"
    return ""
