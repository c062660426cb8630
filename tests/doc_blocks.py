"""The code blocks of README.md and docs/. A page's blocks run in its order, in one namespace and one folder; a block of a
kind that has no evaluator here runs nowhere, which test_docs.py calls a failure.

python       runs, with `device = "cuda"` changed where there is no GPU
python gpu   runs where there is a GPU, and compiles everywhere
cpp, cmake   the pieces of a program and of its CMakeLists.txt, or rows of the table of kernels: the page's commands build
             them
bash         commands
console      commands after "$ " and what they print, in which "..." stands for anything
"""

import doctest
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from doc_commands import Commands
from markdown_it import MarkdownIt
from needs import missing

try:
    from sybil import Document, Example, Lexeme
    from sybil.evaluators.python import PythonEvaluator, pad
    from sybil.parsers.markdown import CodeBlockParser
except ImportError as error:
    missing(str(error))

# What stands around lines of CMake that are no whole CMakeLists.txt.
ENGINE = (
    "cmake_minimum_required(VERSION 3.25)\nproject(engine LANGUAGES CXX)\nadd_executable(engine engine.cpp)\n"
)
ENGINE_SOURCE = "#include <onewave/onewave.h>\nint main() {}\n"


def block_lines(text: str) -> list[int]:
    """Where blocks of code begin, fenced or indented, however deep; not the directives of MyST, which the build checks."""
    tokens = MarkdownIt("commonmark").parse(text)
    blocks = [token for token in tokens if token.type in ("fence", "code_block")]
    return [token.map[0] + 1 for token in blocks if token.map and not token.info.startswith("{")]


class Blocks:
    """Those of one page."""

    def __init__(self, page: Path, folder: Path, commands: Commands, device: str) -> None:
        self._folder = folder
        self._commands = commands
        self._device = device
        self._python = PythonEvaluator()
        evaluators: dict[str, Callable[[Example], str | None]] = {
            "python": self._run_python,
            "python gpu": self._run_gpu_python,
            "cpp": self._add_cpp,
            "cmake": self._add_cmake,
            "bash": self._run_bash,
            "console": self._run_console,
        }
        parsers = [CodeBlockParser(language, evaluator) for language, evaluator in evaluators.items()]
        self._document = Document.parse(str(page), *parsers)

    def lines(self) -> list[int]:
        """Where those begin that have an evaluator."""
        return [example.line for example in self._document.examples()]

    def run(self) -> dict[str, Any]:
        """The namespace of the page's Python, whose files are in the folder."""
        before = Path.cwd()
        os.chdir(self._folder)
        try:
            for example in self._document.examples():
                example.evaluate()
        finally:
            os.chdir(before)
        return self._document.namespace

    def _run_python(self, example: Example) -> None:
        source = example.parsed
        text = source.replace('device = "cuda"', f'device = "{self._device}"')
        example.parsed = Lexeme(text, source.offset, source.line_offset)
        self._python(example)

    def _run_gpu_python(self, example: Example) -> None:
        if self._device == "cuda":
            self._run_python(example)
        else:
            compile(pad(example.parsed, example.line), example.path, "exec")

    def _add_cpp(self, example: Example) -> None:
        with (self._folder / "serve.cpp").open("a") as file:
            # What the compiler says then names the page.
            file.write(f'#line {example.line + 1} "{example.path}"\n{example.parsed}')

    def _add_cmake(self, example: Example) -> None:
        text = str(example.parsed)
        if text.startswith("set("):
            _replace_rows(self._folder / "cmake/Kernels.cmake", text)
            return
        if "project(" not in text:
            text = ENGINE + text
            (self._folder / "engine.cpp").write_text(ENGINE_SOURCE)
        with (self._folder / "CMakeLists.txt").open("a") as file:
            file.write(text)

    def _run_bash(self, example: Example) -> None:
        for line in re.sub(r"\\\n\s*", "", example.parsed).splitlines():
            self._commands.run(line.partition("  #")[0].strip())

    def _run_console(self, example: Example) -> str | None:
        for command, expected in console_commands(example.parsed):
            printed = _without_trailing_spaces(self._commands.run(command))
            if not doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS):
                return f"$ {command}\nprints\n{printed}\nand the page has\n{expected}"
        return None


def _replace_rows(table: Path, text: str) -> None:
    """One list of the table of kernels by the page's, which has all rows and more."""
    name = text.partition("\n")[0]
    before = re.search(rf"^{re.escape(name)}\n.*?\)\n", table.read_text(), re.MULTILINE | re.DOTALL)
    assert before, f"{table} has no {name}"
    rows = [set(re.findall(r'"(.*?)"', rows)) for rows in (before[0], text)]
    assert rows[0] < rows[1], f"{name} has {rows[0]}, and on the page {rows[1]}"
    table.write_text(table.read_text().replace(before[0], text))


def console_commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command and the output behind it."""
    head, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not head.strip() and parts, "a console block begins with '$ ' and a command"
    for part in parts:
        command, _, output = part.partition("\n")
        yield command, output


def _without_trailing_spaces(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
