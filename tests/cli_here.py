"""Commands of onewave in the tests' own process: it takes seconds to import torch."""

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout

import pytest
from onewave._cli import main


def run_cli_here(*arguments: str, columns: int = 200) -> subprocess.CompletedProcess[str]:
    """What `python -m onewave` prints and ends with, in lines of `columns`. The machine's GPU is not hidden."""
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setenv("COLUMNS", str(columns))
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = int(exit.code or 0)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
