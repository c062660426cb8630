"""Jinja2, where it is installed: it comes with the extra `bench`."""

import importlib
from typing import Any


class MissingJinja(ImportError):
    """What to install."""


def import_jinja(wanted_by: str) -> Any:
    """`wanted_by`: the option, for the message."""
    try:
        return importlib.import_module("jinja2")
    except ImportError as error:
        raise MissingJinja(f"{wanted_by} needs Jinja2: python3 -m pip install 'onewave[bench]'") from error
