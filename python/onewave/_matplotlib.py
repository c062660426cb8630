"""matplotlib, where it is installed: it comes with the extra `bench`."""

import importlib
from pathlib import Path
from typing import Any


class MissingMatplotlib(ImportError):
    """What to install."""


def import_pyplot(wanted_by: str) -> Any:
    """Drawing to files. `wanted_by`: the option, for the message."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingMatplotlib(
            f"{wanted_by} needs matplotlib: python3 -m pip install 'onewave[bench]'"
        ) from error
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def save(figure: Any, path: Path) -> None:
    """The file's suffix says which format: png, svg, pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
