"""The wheel: its tags, what is in it, what it links and exports.

ONEWAVE_WHEEL names the wheel to look at; without it the installed distribution is put back into one.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from repack import LIBRARY

PUBLIC_HEADERS = [path.name for path in (Path(__file__).parent.parent / "cpp/include/onewave").glob("*.h")]
EXTENSION = "onewave/_core.abi3.so"
# What the benchmark's page is made from.
PAGE_PARTS = ("macros.html", "page.html", "sort.js", "style.css")
# manylinux takes these from the machine. The loader is there for thread-local storage.
SYSTEM_LIBRARIES = {
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
}


@pytest.fixture(scope="module")
def wheel(wheel_path: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel_path) as archive:
        yield archive


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (file for file in wheel.namelist() if file.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def dynamic(wheel: zipfile.ZipFile, name: str, tag: str) -> list[str]:
    """The strings of one tag (needed, runpath, ...) in the dynamic section of a shared object."""
    section = ELFFile(io.BytesIO(wheel.read(name))).get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    return [getattr(entry, tag) for entry in section.iter_tags() if hasattr(entry, tag)]


def c_functions(wheel: zipfile.ZipFile, name: str) -> set[str]:
    """Those with C linkage that a shared object exports."""
    section = ELFFile(io.BytesIO(wheel.read(name))).get_section_by_name(".dynsym")
    assert isinstance(section, SymbolTableSection)
    functions = {
        symbol.name
        for symbol in section.iter_symbols()
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
    }
    assert functions
    return {function for function in functions if not function.startswith("_Z")}


def test_one_wheel_serves_every_python_from_3_10(wheel_path: Path, wheel: zipfile.ZipFile) -> None:
    _, version, python, abi, platform = wheel_path.stem.split("-")
    assert (python, abi) == ("cp310", "abi3")
    assert re.fullmatch(r"linux_x86_64|manylinux_2_\d+_x86_64(\..+)?", platform), platform
    assert Parser().parsestr(metadata(wheel, "WHEEL"))["Root-Is-Purelib"] == "false"
    fields = Parser().parsestr(metadata(wheel, "METADATA"))
    assert (fields["Name"], fields["Version"], fields["Requires-Python"]) == ("onewave", version, ">=3.10")
    assert fields["License-Expression"] == "Apache-2.0"


def test_it_has_what_python_and_cpp_need(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    headers = {f"onewave/include/onewave/{header}" for header in (*PUBLIC_HEADERS, "version.h")}
    package = {f"onewave/lib/cmake/onewave/onewaveConfig{part}.cmake" for part in ("", "Version", "-release")}
    expected = {LIBRARY, EXTENSION, "onewave/__init__.py", "onewave/_core.pyi", "onewave/py.typed"}
    expected |= {f"onewave/bench/report/{part}" for part in PAGE_PARTS}
    assert PUBLIC_HEADERS and not (expected | headers | package) - names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_it_has_nothing_else(wheel: zipfile.ZipFile) -> None:
    kinds = (".py", ".pyi", ".h", ".cmake", "/py.typed", "/kernel_resources.csv")
    kinds += tuple(f"/report/{part}" for part in PAGE_PARTS)
    strangers = [
        name
        for name in wheel.namelist()
        if name not in (LIBRARY, EXTENSION)
        and not (name.startswith("onewave/") and name.endswith(kinds))
        and not name.endswith("/")  # folders: auditwheel writes them too
        and ".dist-info/" not in name
    ]
    assert not strangers


def test_it_has_the_kernels_inside(wheel: zipfile.ZipFile) -> None:
    rows = wheel.read("onewave/lib/kernel_resources.csv").decode().splitlines()[1:]
    library = wheel.read(LIBRARY)
    assert len(rows) == 156
    assert len(library) > sum(int(row.split(",")[-1]) for row in rows)
    assert library.count(b"onewave_attention") >= 108
    for name in (
        b"onewave_append",
        b"onewave_append_fp8",
        b"onewave_merge_states",
        b"onewave_update_kv_lens",
    ):
        assert name in library


@pytest.mark.parametrize("name", [LIBRARY, EXTENSION])
def test_it_links_only_the_system(wheel: zipfile.ZipFile, name: str) -> None:
    needed = set(dynamic(wheel, name, "needed"))
    assert needed - SYSTEM_LIBRARIES == ({"libonewave.so"} if name == EXTENSION else set())


def test_the_extension_finds_its_library_beside_it(wheel: zipfile.ZipFile) -> None:
    paths = dynamic(wheel, EXTENSION, "runpath") + dynamic(wheel, EXTENSION, "rpath")
    assert paths == ["$ORIGIN/lib"]
    assert not dynamic(wheel, LIBRARY, "runpath") + dynamic(wheel, LIBRARY, "rpath")


def test_no_c_function_could_let_an_exception_through(wheel: zipfile.ZipFile) -> None:
    """error.h says why there is none; PyInit__core is nanobind's, which makes an ImportError of every exception."""
    assert c_functions(wheel, LIBRARY) == set()
    assert c_functions(wheel, EXTENSION) == {"PyInit__core"}


def test_auditwheel_calls_it_manylinux(wheel_path: Path) -> None:
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert re.search(r'platform tag: "manylinux_2_\d+_x86_64"', text), done.stdout
    libraries = set(re.findall(r"\b(?:lib|ld-)[\w+.-]*\.so[\w.]*", text))
    assert libraries <= SYSTEM_LIBRARIES, done.stdout
