"""A page of HTML as tests ask of it: its text, its tables, what it refers to."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import NamedTuple

# Elements without an end.
VOID = ("br", "hr", "img", "input", "link", "meta", "wbr")


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]


@dataclass
class TableText:
    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)  # of cells, headings among them


class Page(HTMLParser):
    """All elements, and the text that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.tables: list[TableText] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def ids(self) -> list[str]:
        return [element.attributes["id"] for element in self.elements if "id" in element.attributes]

    def find(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def table(self, caption: str) -> TableText:
        (found,) = (table for table in self.tables if table.caption == caption)
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append(TableText())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> ends {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "script" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self.tables[-1].caption += data
        elif "td" in self._open or "th" in self._open:
            row = self.tables[-1].rows[-1]
            # The small print of a cell is not what it says.
            row[-1] += "" if "small" in self._open else data.strip("\n")
