"""Tests marked `gpu` are skipped, with the reason, where onewave cannot use the machine's GPU. Fixtures that several
modules use: the wheel, the compiler of the kernels, a made-up driver."""

import functools
import multiprocessing
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import onewave
import pytest
import torch
from find_nvcc import NvccError, find_nvcc
from needs import missing, needed_program
from repack import repack_installed


@functools.cache
def gpu_problem() -> str | None:
    """Why tests of the GPU cannot run here; None where they can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    try:
        onewave.BatchAttention(device="cuda")
    except onewave.DeviceError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is not None and gpu_problem() is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs a Hopper GPU: {gpu_problem()}"))


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """For many small operations of torch's: its threads take ten times as long where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONEWAVE_WHEEL, or else the installed distribution."""
    if named := os.environ.get("ONEWAVE_WHEEL"):
        return Path(named)
    return repack_installed(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def nvcc() -> str:
    for program in ("cmake", "ninja"):
        needed_program(program)
    try:
        return str(find_nvcc().path)
    except NvccError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = needed_program("cc")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("fake_driver.c")
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def counted_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start from now on count the calls of C++'s operator new."""
    compiler, library = needed_program("cc"), tmp_path / "count_news.so"
    source = (
        "#include <stdlib.h>\nint num_news; void* _Znwm(size_t size) { return num_news++, malloc(size); }"
    )
    command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))


@pytest.fixture
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """A fresh process: a driver is opened once in each. It is forked from one that has imported what takes seconds, but where
    a library is to be loaded before all else (counted_news, sanitizers)."""
    context = multiprocessing.get_context("spawn" if os.environ.get("LD_PRELOAD") else "forkserver")
    context.set_forkserver_preload(["numpy", "onewave.plan_format", "pytest", "torch"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield pool


@pytest.fixture
def seed(record_property: Callable[[str, object], None]) -> int:
    """Fresh inputs every time; ONEWAVE_TEST_SEED repeats those of a failure."""
    value = int(os.environ.get("ONEWAVE_TEST_SEED", secrets.randbits(31)))
    record_property("seed", value)
    print(f"ONEWAVE_TEST_SEED={value}")
    return value


@pytest.fixture
def float32_means_float32() -> Iterator[None]:
    """No TF32 in the oracle."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
