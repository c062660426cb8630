"""The build: bad kernels are refused, and kernels are compiled anew only when what they include has changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cmake_build import REPO, configure, copy_sources, run
from find_nvcc import NvccError, find_nvcc

# One pair of head_dims: as many as it takes to see what is compiled anew.
OPTIONS = ("-DONEWAVE_PYTHON=OFF", "-DONEWAVE_HEAD_DIMS=64 64")
NUM_KERNELS = 36


def compile_kernel(nvcc: str, source: str, out_dir: Path) -> subprocess.CompletedProcess[str]:
    return run(
        "cmake",
        f"-DNVCC={nvcc}",
        f"-DNAME={source}",
        f"-DSOURCE={REPO / 'tests/kernels' / source}.cu",
        f"-DCUBIN={out_dir / source}.cubin",
        f"-DINCLUDES={REPO / 'cpp/include'};{REPO / 'cuda'}",
        "-DDEFINES=ONEWAVE_DTYPE=__half;ONEWAVE_KV_DTYPE=__half;ONEWAVE_HEAD_DIM_QK=64;ONEWAVE_HEAD_DIM_VO=64;ONEWAVE_LOADER=0;ONEWAVE_MASKED=0;ONEWAVE_PROFILED=0",
        "-P",
        REPO / "cmake/CompileKernel.cmake",
    )


def test_a_good_kernel_is_compiled_and_its_resources_recorded(nvcc: str, tmp_path: Path) -> None:
    done = compile_kernel(nvcc, "good", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "good.cubin").read_bytes()[:4] == b"\x7fELF"
    name, registers, stack_bytes, static_smem_bytes, cubin_bytes = (
        (tmp_path / "good.cubin.csv").read_text().strip().split(",")
    )
    assert (name, stack_bytes, static_smem_bytes) == ("good", "0", "0")
    assert 0 < int(registers) <= 255
    assert int(cubin_bytes) == (tmp_path / "good.cubin").stat().st_size


@pytest.mark.parametrize(
    ("source", "reason", "quote"),
    [
        ("spill", "kernel spill spills registers", r"[1-9]\d* bytes spill stores"),
        ("serialised_wgmma", "kernel serialised_wgmma has its wgmma serialised", r"\(C75\d\d\) .*serialized"),
    ],
)
def test_a_bad_kernel_is_refused(nvcc: str, tmp_path: Path, source: str, reason: str, quote: str) -> None:
    done = compile_kernel(nvcc, source, tmp_path)
    assert done.returncode != 0
    assert reason in done.stderr
    assert re.search(quote, done.stderr), done.stderr
    assert not (tmp_path / f"{source}.cubin").exists(), "it would look finished to the next build"
    assert re.search(quote, (tmp_path / f"{source}.cubin.txt").read_text()), "what nvcc said is kept"


def test_a_compiler_too_old_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n")
    old.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(old))
    with pytest.raises(NvccError, match=rf"{old}: is nvcc 12\.8, must be 13\.0 or newer"):
        find_nvcc()


def build_kernels(build_dir: Path) -> int:
    """Brings the cubins up to date; how many had to be compiled."""
    done = run("ninja", "-C", build_dir, "onewave_kernels")
    assert done.returncode == 0, done.stdout
    return done.stdout.count("Compiling kernel")


@pytest.fixture(scope="module")
def built(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the sources whose kernel is the cheap one, and its build folder with all cubins made."""
    source_dir, build_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("build")
    copy_sources(source_dir)
    configure(source_dir, build_dir, *OPTIONS)
    assert build_kernels(build_dir) == NUM_KERNELS
    return source_dir, build_dir


def test_every_kernel_of_the_table_is_in_the_resource_table(built: tuple[Path, Path]) -> None:
    lines = (built[1] / "kernel_resources.csv").read_text().splitlines()
    assert lines[0] == "kernel,registers,stack_bytes,static_smem_bytes,cubin_bytes"
    assert len({line.split(",")[0] for line in lines[1:]}) == NUM_KERNELS


def test_a_changed_cpp_file_recompiles_no_kernel(built: tuple[Path, Path]) -> None:
    source_dir, build_dir = built
    for source in (source_dir / "cpp").glob("*.cpp"):
        os.utime(source)
    assert build_kernels(build_dir) == 0


def test_another_pip_install_recompiles_no_kernel(built: tuple[Path, Path]) -> None:
    source_dir, build_dir = built
    # What scikit-build-core does to a build folder that another isolated environment configured.
    (build_dir / "CMakeCache.txt").unlink()
    shutil.rmtree(build_dir / "CMakeFiles")
    configure(source_dir, build_dir, *OPTIONS)
    assert build_kernels(build_dir) == 0


def test_a_changed_header_of_the_kernels_recompiles_them(built: tuple[Path, Path]) -> None:
    source_dir, build_dir = built
    os.utime(source_dir / "cuda/config.cuh")
    assert build_kernels(build_dir) == NUM_KERNELS


def test_one_bad_kernel_fails_the_whole_build(built: tuple[Path, Path]) -> None:
    source_dir, build_dir = built
    shutil.copy(REPO / "tests/kernels/spill.cu", source_dir / "cuda/attention.cu")
    done = run("ninja", "-C", build_dir, "onewave")
    assert done.returncode != 0
    assert re.search(r"kernel \w+ spills registers", done.stdout), done.stdout
    shutil.copy(REPO / "tests/kernels/good.cu", source_dir / "cuda/attention.cu")
