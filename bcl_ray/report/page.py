"""An HTML page in one file, which needs no server and no other file: `page.html.j2`, filled in."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from bcl_ray.report.figures.style import png

IMAGE_SCALE = 1.4  # pixels of an image per pixel of the page


@dataclass(frozen=True)
class PageTable:
    """Rows of text and numbers; None is shown as "-"."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 1
    """Digits behind the decimal point of floats."""

    @cached_property
    def is_numeric(self) -> list[bool]:
        """Whether each column has only numbers, which are aligned to the right."""
        return [
            all(isinstance(row[column], int | float | None) for row in self.rows)
            for column in range(len(self.columns))
        ]

    def shown(self, value: Any, column: int) -> str:
        """The text of a cell."""
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:,.{self.digits}f}"
        return f"{value:,}" if self.is_numeric[column] else str(value)


@dataclass(frozen=True)
class PageSection:
    """A part of a page: paragraphs, then figures, then a table."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs of plain text."""
    figures: Sequence[tuple[Figure | bytes, str]] = ()
    """Figures, or contents of PNG files, each with a description for people who cannot see it."""
    table: PageTable | None = None


def page(title: str, sections: Sequence[PageSection]) -> str:
    """The text of an HTML page that contains its images."""
    return _template().render(title=title, sections=sections)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "png": lambda figure: figure if isinstance(figure, bytes) else png(figure),
        "width": lambda content: round(_pixels(content) / IMAGE_SCALE),
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return environment.from_string(Path(__file__).with_name("page.html.j2").read_text())


def _pixels(content: bytes) -> int:
    """The width of a PNG file's image."""
    return int.from_bytes(content[16:20], "big")
