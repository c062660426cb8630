"""The installed distribution, put back into a wheel."""

import importlib.metadata
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

LIBRARY = "onewave/lib/libonewave.so"


def repack_installed(out_dir: Path) -> Path:
    distribution = importlib.metadata.distribution("onewave")
    files = [file for file in distribution.files or [] if ".." not in file.parts and file.suffix != ".pyc"]
    if not any(str(file) == LIBRARY for file in files):
        pytest.skip("the installed onewave is editable: set ONEWAVE_WHEEL to a wheel")
    tag = Parser().parsestr(distribution.read_text("WHEEL") or "")["Tag"]
    path = out_dir / f"onewave-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            if file.name != "RECORD":
                archive.write(str(file.locate()), str(file))
        archive.writestr(
            f"onewave-{distribution.version}.dist-info/RECORD", "".join(f"{file},,\n" for file in files)
        )
    return path
