"""A figure as SVG inside a page, in the page's colours and type."""

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

# matplotlib's settings while a figure is drawn: text stays text, and a $ in a name is no formula.
SVG_STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 11}
# No date, so that a record gives the same page again, and no addresses of vocabularies.
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline_svg(figure: Any, name: str, alt: str, replacements: Mapping[str, str]) -> str:
    """`name`: no other figure's of the page; `replacements`: what stands for each colour."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=NO_METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    # Each figure has names of its own; several in one document would take each other's.
    body = re.sub(r'(?<= id=")', f"{name}-", body)
    body = re.sub(r'(?<= href="#)|(?<=url\(#)', f"{name}-", body)
    body = re.sub(r"\bfont: ([\d.]+px) [^;\"]+", r"font-size: \1", body)
    for color, replacement in replacements.items():
        body = body.replace(color, replacement)
    return f'<svg {view_box[0]} role="img" aria-label="{escape(alt)}">{body}'
