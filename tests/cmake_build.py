"""Builds by CMake for the tests: of onewave with a kernel that compiles in a second, and of what uses it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=300, env=os.environ | environment
    )


def configure(source_dir: Path, build_dir: Path, *options: str) -> None:
    # The interpreter matters to FindNvcc: its packages may have the compiler.
    interpreter = f"-DPython_EXECUTABLE={sys.executable}"
    done = run("cmake", "-G", "Ninja", "-S", source_dir, "-B", build_dir, interpreter, *options)
    assert done.returncode == 0, done.stderr


def copy_sources(source_dir: Path) -> None:
    """Of the library, with the cheap kernel in place of attention.cu."""
    for folder in ("cpp", "cuda", "cmake"):
        shutil.copytree(REPO / folder, source_dir / folder)
    for file in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(REPO / file, source_dir)
    shutil.copy(REPO / "tests/kernels/good.cu", source_dir / "cuda/attention.cu")
