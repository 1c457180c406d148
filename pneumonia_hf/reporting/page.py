"""What a report is made of: sections of text, tables and figures; as Markdown and as HTML."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TEMPLATES = Path(__file__).with_name("templates")
WITHOUT_IMAGES = "This page holds no X-ray: its figures are drawn from numbers only."
WITH_IMAGES = "This page holds X-rays of patients: pass it on only where that is allowed."


@dataclass(frozen=True)
class Table:
    """A table; cells are shown by `str`, and in HTML as text."""

    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A figure, in files of its name."""

    name: str  # may begin with a folder, as in thumbnails/blank
    draw: Callable[[], Drawing]
    is_wide: bool = False  # as wide as the page
    has_xrays: bool = False  # of patients; others are drawn from numbers

    @property
    def label(self) -> str:
        """The name for people."""
        return self.name.rpartition("/")[2].replace("_", " ")


@dataclass(frozen=True)
class Section:
    """A part of a report: what is shown of it, and its numbers in the JSON file.

    A section without a body is not shown, and one without a title has no heading. A text is
    Markdown.
    """

    title: str
    body: tuple[str | Table | Figure, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a reader must know, on one screen."""

    sentence: str
    numbers: Sequence[tuple[str, str]]  # name, and value with interval
    reservations: Sequence[str]  # the gravest, gravest first
    more: Sequence[str] = ()  # further ones


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    sections: Sequence[Section]
    summary: Summary | None = None

    @property
    def shown(self) -> list[Section]:
        """The sections that have something to show."""
        return [section for section in self.sections if any(section.body)]

    @property
    def figures(self) -> list[Figure]:
        """All figures, in their order."""
        return [
            part for section in self.sections for part in section.body if isinstance(part, Figure)
        ]

    @property
    def numbers(self) -> dict[str, Any]:
        """The contents of the JSON file."""
        return {key: value for one in self.sections for key, value in one.numbers.items()}


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown, without a final line break; `|` in a cell is escaped."""

    def line(cells: Sequence[Any]) -> str:
        escaped = (str(cell).replace("|", r"\|") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def to_markdown(page: Page, drawn: Collection[str] = ()) -> str:
    """Return a report; `drawn` are the names of the figures that lie beside it as PNG files."""
    blocks = [f"# {page.title}", "Research software, not a medical device."]
    if summary := page.summary:
        blocks += [
            f"**{summary.sentence}**",
            markdown_table(["", "95% interval in brackets"], summary.numbers),
            "\n".join(f"- **{text}**" for text in summary.reservations),
            "\n".join(f"- {text}" for text in summary.more),
        ]
    for section in page.shown:
        blocks.append(section.title and f"## {section.title}")
        for part in section.body:
            if isinstance(part, Table):
                blocks.append(markdown_table(part.header, part.rows))
            elif not isinstance(part, Figure):
                blocks.append(part)
            elif part.name in drawn:
                blocks.append(f"![{part.label}]({part.name}.png)")
    return "\n\n".join(filter(None, blocks)) + "\n"


def to_html(page: Page, files: Mapping[str, Path]) -> str:
    """Return a report as one self-contained page.

    Names of files and data may hold anything: HTML in them is shown as text, and only figures
    become images.

    Args:
        page: the report.
        files: the SVG or PNG file of each figure that was drawn, by its name.
    """
    from jinja2 import Environment, FileSystemLoader
    from markdown_it import MarkdownIt

    # Of this preset, HTML is off and links to scripts are refused.
    converter = MarkdownIt("js-default").disable(["link", "image", "autolink", "reference"])
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    environment.tests |= {
        "table": lambda part: isinstance(part, Table),
        "figure": lambda part: isinstance(part, Figure),
    }
    environment.filters |= {
        "markdown": converter.render,
        "inline": converter.renderInline,
        "anchor": lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"),
        "data_uri": _to_data_uri,
    }
    with_xrays = any(one.has_xrays for one in page.figures if one.name in files)
    return environment.get_template("page.html").render(
        page=page, files=files, privacy=WITH_IMAGES if with_xrays else WITHOUT_IMAGES
    )


def _to_data_uri(file: Path) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}[file.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
