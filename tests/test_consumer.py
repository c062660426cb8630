"""What embeds the C++ library: the CMake package of a prefix and of the wheel, its headers, and what keeps versions apart.

The program is consumer/. Where the tests are not of a GPU, they hide it: the prefix has a kernel that computes nothing.
"""

import os
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from cmake_build import REPO, configure, copy_sources, run
from needs import needed_program

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Package:
    cmake_dir: Path
    root: Path  # of include and lib

    @property
    def include_dir(self) -> Path:
        return self.root / "include"

    def macro(self, name: str) -> str:
        """Of version.h."""
        text = (self.include_dir / "onewave/version.h").read_text()
        (value,) = re.findall(rf"#define {name} (\w+)", text)
        return str(value)

    @property
    def symbol(self) -> str:
        return self.macro("ONEWAVE_LIBRARY_MUST_BE")

    @property
    def version(self) -> tuple[int, int, int]:
        major, minor, patch = (self.macro(f"ONEWAVE_VERSION_{part}") for part in ("MAJOR", "MINOR", "PATCH"))
        return int(major), int(minor), int(patch)


@pytest.fixture(scope="session")
def prefix(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Installed, and then moved."""
    folder = tmp_path_factory.mktemp("prefix")
    copy_sources(folder / "source")
    build_dir = folder / "build"
    configure(folder / "source", build_dir, "-DONEWAVE_PYTHON=OFF", "-DONEWAVE_HEAD_DIMS=64 64;128 128")
    for command in (
        ["cmake", "--build", build_dir],
        ["cmake", "--install", build_dir, "--prefix", folder / "first"],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout
    root = (folder / "first").rename(folder / "prefix")
    return Package(root / "lib/cmake/onewave", root)


@pytest.fixture(scope="session")
def unpacked_wheel(wheel_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel_path) as archive:
        archive.extractall(folder)
    done = run(sys.executable, "-m", "onewave", "cmake-dir", PYTHONPATH=python_path(folder))
    assert done.returncode == 0, done.stderr
    return Package(Path(done.stdout.removesuffix("\n")), folder / "onewave")


def python_path(folder: Path) -> str:
    return f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


@pytest.fixture(scope="session", params=["prefix", "unpacked_wheel"])
def package(request: pytest.FixtureRequest) -> Package:
    found: Package = request.getfixturevalue(request.param)
    return found


def build_consumer(package: Package, build_dir: Path) -> Path:
    for program in ("cmake", "ninja", "c++"):
        needed_program(program)
    configure(REPO / "tests/consumer", build_dir, f"-Donewave_DIR={package.cmake_dir}")
    done = run("cmake", "--build", build_dir)
    assert done.returncode == 0, done.stdout
    return build_dir / "consumer"


@pytest.fixture(scope="session")
def consumer(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_consumer(package, tmp_path_factory.mktemp("consumer"))


@pytest.fixture(scope="session")
def consumer_of_the_wheel(unpacked_wheel: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_consumer(unpacked_wheel, tmp_path_factory.mktemp("consumer"))


def test_it_plans_and_executes_on_the_cpu(consumer: Path) -> None:
    done = run(consumer, **NO_GPU)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^plan: [1-9]\d* narrow items, [1-9]\d* wide, [1-9]\d* tiles split$", done.stdout, re.MULTILINE
    )
    assert "\ncpu: right, " in done.stdout and "\nno GPU: " in done.stdout


@pytest.mark.gpu
def test_it_launches(consumer_of_the_wheel: Path) -> None:
    done = run(consumer_of_the_wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\ngpu: right, " in done.stdout


def test_the_package_names_no_place_of_the_build(package: Package) -> None:
    files = list(package.cmake_dir.glob("*.cmake"))
    assert len(files) == 3
    for file in files:
        assert not re.findall(r'"/[^"]+', file.read_text()), file


@pytest.mark.parametrize(
    ("part", "change", "fits"),
    [("patch", 0, True), ("patch", 1, False), ("minor", -1, False), ("minor", 1, False), ("major", 1, False)],
)
def test_find_package_refuses_what_does_not_fit(
    package: Package, tmp_path: Path, part: str, change: int, fits: bool
) -> None:
    """A later patch or, as the major is 0, another minor."""
    needed_program("cmake")
    version = dict(zip(("major", "minor", "patch"), package.version, strict=True))
    assert version["major"] == 0
    version[part] += change
    wanted = ".".join(map(str, version.values()))
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(finds LANGUAGES NONE)\n"
        f"find_package(onewave {wanted} CONFIG REQUIRED)\n"
    )
    done = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Donewave_DIR={package.cmake_dir}")
    assert (done.returncode == 0) == fits, done.stderr


@pytest.mark.parametrize(
    "header", sorted((REPO / "cpp/include/onewave").glob("*.h")), ids=lambda path: path.name
)
def test_a_header_compiles_alone(unpacked_wheel: Package, header: Path) -> None:
    """And reaches for nothing but the standard library."""
    check_header(unpacked_wheel, header.name)


def test_the_generated_header_compiles_alone(unpacked_wheel: Package) -> None:
    check_header(unpacked_wheel, "version.h")


def check_header(package: Package, name: str) -> None:
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{package.include_dir}"]
    source = package.include_dir / "onewave" / name
    compiler = needed_program("c++")
    done = run(compiler, *flags, "-fsyntax-only", "-include", source, "-xc++", os.devnull, CPATH="")
    assert done.returncode == 0, done.stderr
    reached = run(compiler, *flags, "-M", "-xc++", source, CPATH="").stdout
    assert "/onewave/" in reached and not re.search(r"cuda|Python\.h", reached), reached


def make_library(path: Path, source: str, *options: str) -> Path:
    """A shared object that does as if it were, or belonged to, a libonewave.so."""
    file = path.with_suffix(".cpp")
    file.write_text(source)
    done = run(needed_program("c++"), "-w", "-shared", "-fPIC", file, "-o", path, *options)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def incompatible_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("incompatible") / "libonewave.so"
    source = 'extern "C" const char onewave_library_must_be_9_9 = 0;'
    return make_library(path, source, "-Wl,-soname,libonewave.so")


@pytest.fixture(scope="module")
def other_patch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = 'namespace onewave { const char* library_version() { return "other"; } }'
    return make_library(tmp_path_factory.mktemp("patch") / "patch.so", source)


def test_a_program_does_not_start_with_an_incompatible_library(
    consumer_of_the_wheel: Path, unpacked_wheel: Package, incompatible_library: Path
) -> None:
    done = run(consumer_of_the_wheel, LD_LIBRARY_PATH=str(incompatible_library.parent))
    assert done.returncode != 0 and done.stdout == ""
    assert f"undefined symbol: {unpacked_wheel.symbol}" in done.stderr


def test_nor_does_it_link(unpacked_wheel: Package, incompatible_library: Path, tmp_path: Path) -> None:
    source = tmp_path / "main.cpp"
    source.write_text("#include <onewave/onewave.h>\nint main() {}\n")
    command = [
        needed_program("c++"),
        "-std=c++20",
        f"-I{unpacked_wheel.include_dir}",
        source,
        "-o",
        tmp_path / "main",
    ]
    done = run(*command, incompatible_library)
    assert done.returncode != 0
    assert f"undefined reference to `{unpacked_wheel.symbol}'" in done.stderr
    assert run(*command, unpacked_wheel.root / "lib/libonewave.so").returncode == 0


def test_a_program_runs_with_another_patch(consumer_of_the_wheel: Path, other_patch: Path) -> None:
    done = run(consumer_of_the_wheel, LD_PRELOAD=str(other_patch), **NO_GPU)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "onewave other")


def import_error(unpacked_wheel: Package, library: Path) -> str:
    """Of the extension where `library` was loaded first."""
    environment = {"PYTHONPATH": python_path(unpacked_wheel.root.parent), "LD_PRELOAD": str(library)}
    done = run(sys.executable, "-c", "import onewave", **environment)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_python_wants_the_library_of_its_own_version(unpacked_wheel: Package, other_patch: Path) -> None:
    ours = ".".join(map(str, unpacked_wheel.version))
    message = import_error(unpacked_wheel, other_patch)
    assert message.startswith(
        f"ImportError: onewave._core is of version {ours}, libonewave.so is of version other; "
    )


def test_python_does_not_import_with_an_incompatible_library(
    unpacked_wheel: Package, incompatible_library: Path
) -> None:
    # This library lacks the functions too, and which symbol is missed first is the loader's choice.
    message = import_error(unpacked_wheel, incompatible_library)
    assert re.fullmatch(r"ImportError: .*_core\.abi3\.so: undefined symbol: \w*onewave\w+", message), message
