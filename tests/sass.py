"""The machine code of the kernels that a library carries, as nvdisasm shows it."""

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

ELF_MAGIC = b"\x7fELF"
EM_CUDA = 190


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers: HGMMA.64x128x16.F32.BF16
    operands: str

    def is_a(self, name: str) -> bool:
        return self.opcode.split(".")[0] == name


def nvdisasm() -> str:
    """Of the package nvidia-cuda-nvdisasm, which puts it beside the other tools of its CUDA release."""
    for folder in map(Path, sys.path):
        for tool in folder.glob("nvidia/cu*/bin/nvdisasm"):
            return str(tool)
    raise FileNotFoundError("nvdisasm: python3 -m pip install 'onewave[test]'")


def cubins(library: Path) -> Iterator[bytes]:
    """The embedded cubins, in the order of the kernel table."""
    content = library.read_bytes()
    begin = content.find(ELF_MAGIC, 1)
    while begin >= 0:
        elf = ELFFile(BytesIO(content[begin:]))
        if elf["e_machine"] == EM_CUDA or elf["e_machine"] == "EM_CUDA":
            # The section headers are not always last, nor the program headers.
            ends = [elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"]]
            ends.append(elf["e_phoff"] + elf["e_phnum"] * elf["e_phentsize"])
            yield content[begin : begin + max(ends)]
        begin = content.find(ELF_MAGIC, begin + 1)


@functools.cache
def disassemble(cubin: bytes) -> list[Instruction]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([nvdisasm(), "-c", file.name], check=True, capture_output=True, text=True)
    pattern = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
    return [Instruction(*match.groups()) for match in pattern.finditer(done.stdout)]
