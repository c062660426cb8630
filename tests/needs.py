"""What tests need of the machine beside the package."""

import importlib
import os
import shutil
from typing import Any, NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test, or the module that is being imported; fails it where CI is set: .ci/run installs all that the tests
    need."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def optional_program(*names: str) -> str:
    """The path of one of them; skips the test where there is none, also under CI."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"none of {', '.join(names)} is on PATH")


def needed_program(name: str) -> str:
    """Its path."""
    return shutil.which(name) or missing(f"{name} is not on PATH")


def needed_module(name: str) -> Any:
    """For a whole test module, which is skipped without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{name} is not installed", allow_module_level=True)
