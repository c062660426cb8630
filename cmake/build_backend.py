"""scikit-build-core, with one requirement more: a CUDA compiler from the registry where the machine has none.

pyproject.toml cannot ask whether a program exists, and the download is 100 MB.
"""

from __future__ import annotations

import os

from find_nvcc import NvccError, find_nvcc
from scikit_build_core import build as _backend
from scikit_build_core.build import *

# One consistent set: nvcc alone would pull an nvvm of another release.
_NVCC_REQUIREMENT = "cuda-toolkit[nvcc,cccl]==13.0.*"


def _nvcc_requirements() -> list[str]:
    try:
        find_nvcc(packages=False)
    except NvccError:
        # A CUDACXX that will not do is the user's to mend: CMake says what is wrong with it.
        return [] if os.environ.get("CUDACXX") else [_NVCC_REQUIREMENT]
    return []


def get_requires_for_build_wheel(config_settings: dict[str, str | list[str]] | None = None) -> list[str]:
    return [*_backend.get_requires_for_build_wheel(config_settings), *_nvcc_requirements()]


def get_requires_for_build_editable(config_settings: dict[str, str | list[str]] | None = None) -> list[str]:
    return [*_backend.get_requires_for_build_editable(config_settings), *_nvcc_requirements()]
