"""Hugging Face transformers, where it is installed in a version that fits: it comes with the extra `generate`."""

import importlib
import re
from typing import Any

from onewave._validate import check_unsupported

# The first whose continuous batching says what ended it, and keeps a cache that _cache.py knows.
LOWEST_VERSION = (5, 17)


class MissingTransformers(ImportError):
    """What to install."""


def import_transformers(submodule: str = "") -> Any:
    """transformers, or a module of it. Nothing of it is a dependency of onewave's, so its types are not known here."""
    try:
        version = str(importlib.import_module("transformers").__version__)
    except ImportError as error:
        raise MissingTransformers(
            "onewave.integrations.transformers needs transformers: python3 -m pip install 'onewave[generate]'"
        ) from error
    check_version(version)
    return importlib.import_module(f"transformers.{submodule}" if submodule else "transformers")


def check_version(version: str) -> None:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or tuple(map(int, match.groups())) < LOWEST_VERSION:
        lowest = ".".join(map(str, LOWEST_VERSION))
        raise MissingTransformers(
            f"transformers is {version}; onewave.integrations.transformers needs {lowest} or newer: "
            "python3 -m pip install 'onewave[generate]'"
        )


def check_known(arguments: dict[str, Any]) -> None:
    """Refuses what a model asks of its attention and onewave does not compute. `arguments`: what the attention function was
    called with beside those that it names."""
    check_unsupported("dropout", arguments.get("dropout"), (0.0, None))
    check_unsupported("output_attentions", arguments.get("output_attentions"), (False, None))
    check_unsupported("position_bias", arguments.get("position_bias"), (None,))


def sinks_of(module: Any, s_aux: Any) -> Any:
    """float32 [num_qo_heads], or None: the sinks of gpt-oss's kind, as run() takes them."""
    sinks = getattr(module, "sinks", None) if s_aux is None else s_aux
    return None if sinks is None else sinks.float()
