"""Sphinx's configuration: `sphinx-build -W --keep-going docs build/docs`, beside an installed onewave. Links inside are
checked by that, others by `-b linkcheck`."""

import re
from typing import Any

import onewave
from sphinx.application import Sphinx

project = "onewave"
version = release = onewave.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
# A warning for a link to a heading that is not there.
myst_heading_anchors = 3
autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
default_role = "code"  # what docstrings put in backticks

html_theme = "furo"
html_title = f"onewave {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["onewave.css"]
smartquotes = False  # docstrings have "NHD" and the like
pygments_style = "friendly"

# An argument of a docstring, and what is indented below it.
ARGUMENT = re.compile(r"([a-z_]+(?:, [a-z_]+)*): (.*)")


def as_definitions(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]
) -> None:
    """The house's docstrings, "name: text" and indented lines below, as the definition lists of reStructuredText."""
    converted = []
    in_argument = False
    for line in lines:
        if match := ARGUMENT.fullmatch(line):
            names = ", ".join(f"``{argument}``" for argument in match[1].split(", "))
            converted += ["", names, f"    {escape(match[2])}"]
            in_argument = True
            continue
        if in_argument and line.strip() and not line.startswith(" "):
            converted.append("")
            in_argument = False
        converted.append(escape(line))
    lines[:] = converted


def escape(text: str) -> str:
    """But for what is in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_definitions)
