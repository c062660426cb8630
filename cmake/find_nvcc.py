"""Finds the CUDA compiler, for the build backend (is a download needed?) and for CMake (which one is it?).

The one that CUDACXX names, or else the first that is new enough: on PATH, in /usr/local/cuda, in the package
nvidia-cuda-nvcc of this interpreter. As a program it prints two lines, the compiler and the directory of
cuda.h, or says on stderr what it looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_VERSION = (13, 0)


class NvccError(Exception):
    """No compiler will do; the message is for the user."""


@dataclass(frozen=True)
class Nvcc:
    path: Path
    include_dir: Path  # of cuda.h and cudaTypedefs.h


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NvccError(f"{command[0]}: cannot be run: {error}") from None
    return done.stdout


def inspect(path: Path) -> Nvcc:
    """Checks one compiler; NvccError where it is too old, cannot run, or has no headers."""
    release = re.search(r"release (\d+)\.(\d+)", _run(str(path), "--version"))
    if release is None:
        raise NvccError(f"{path}: --version names no release; is it nvcc?")
    if (int(release[1]), int(release[2])) < MIN_VERSION:
        wanted = ".".join(map(str, MIN_VERSION))
        raise NvccError(f"{path}: is nvcc {release[1]}.{release[2]}, must be {wanted} or newer")
    # A wrapper script may stand far from the toolkit: nvcc itself knows its root.
    dry_run = _run(str(path), "--dryrun", "-cubin", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    root = Path(top[1].strip()).resolve() if top else path.resolve().parent.parent
    for include_dir in (root / "include", *sorted(root.glob("targets/*-linux/include"))):
        if (include_dir / "cudaTypedefs.h").is_file():
            return Nvcc(path, include_dir)
    raise NvccError(f"{path}: no cudaTypedefs.h in {root}/include: the toolkit's headers are not installed")


def _candidates(*, packages: bool) -> Iterator[Path]:
    if found := shutil.which("nvcc"):
        yield Path(found)
    yield Path("/usr/local/cuda/bin/nvcc")
    if packages:
        for entry in sys.path:
            yield Path(entry) / "nvidia/cu13/bin/nvcc"


def find_nvcc(*, packages: bool = True) -> Nvcc:
    """The compiler to use; without `packages`, only the machine's own count."""
    if named := os.environ.get("CUDACXX"):
        found = shutil.which(named)
        if found is None:
            raise NvccError(f"CUDACXX={named}: no such program")
        return inspect(Path(found))
    refused = []
    for path in _candidates(packages=packages):
        if path.is_file():
            try:
                return inspect(path)
            except NvccError as error:
                refused.append(f"  {error}")
    raise NvccError(
        "no CUDA compiler: set CUDACXX, put nvcc on PATH, or pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'"
        + "".join(f"\n{line}" for line in refused)
    )


if __name__ == "__main__":
    try:
        nvcc = find_nvcc()
    except NvccError as error:
        sys.exit(str(error))
    print(nvcc.path, nvcc.include_dir, sep="\n")
