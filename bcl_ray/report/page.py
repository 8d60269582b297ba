"""An HTML page in one file, which needs no server and no other file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bcl_ray.report.figures import Figure, png

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2em auto;
  padding: 0 1em; background: #fff; }
h1 { font-size: 1.7em; margin-bottom: 0.2em; } h2 { font-size: 1.25em; margin-top: 2.2em; }
p { max-width: 75ch; } img { display: block; max-width: 100%; height: auto; margin: 0.8em 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.92em; }
th, td { padding: 0.25em 1.5em 0.25em 0; text-align: left; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #777; cursor: pointer; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
"""
IMAGE_SCALE = 1.4  # pixels of an image per pixel of the page
# A click on a column's heading sorts the rows by that column, a second click in reverse.
SORT_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, up = head.up = !head.up;
  const value = row => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const order = (a, b) => value(a).localeCompare(value(b), "en", {numeric: true});
  const number = (a, b) => value(a) - value(b);
  const by = head.className === "number" ? number : order;
  body.append(...[...body.rows].sort((a, b) => up ? by(a, b) : by(b, a)));
};
"""


@dataclass(frozen=True)
class PageTable:
    """Rows of text and numbers; None is shown as "-"."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 1
    """Digits behind the decimal point of floats."""


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
    parts = "\n".join(map(_section, sections))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{parts}\n"
        f"<script>{SORT_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(section: PageSection) -> str:
    lines = [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
    lines += [f"<p>{html.escape(text)}</p>" for text in section.text]
    lines += [_image(figure, description) for figure, description in section.figures]
    if section.table is not None:
        lines.append(_table(section.table))
    return "\n".join(lines)


def _image(figure: Figure | bytes, description: str) -> str:
    content = figure if isinstance(figure, bytes) else png(figure)
    data = base64.b64encode(content).decode()
    pixels = int.from_bytes(content[16:20], "big")  # the position of the width in a PNG file
    width, alt = round(pixels / IMAGE_SCALE), html.escape(description, quote=True)
    return f'<img width="{width}" src="data:image/png;base64,{data}" alt="{alt}">'


def _table(table: PageTable) -> str:
    numeric = [
        all(isinstance(row[column], int | float | None) for row in table.rows)
        for column in range(len(table.columns))
    ]
    head = "".join(
        f"<th{_class(is_number)}>{html.escape(name)}</th>"
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    rows = [
        "".join(_cell(*cell, table.digits) for cell in zip(row, numeric, strict=True))
        for row in table.rows
    ]
    body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: Any, is_number: bool, digits: int) -> str:
    if value is None:
        return f"<td{_class(is_number)}>-</td>"
    text = str(value)
    if isinstance(value, float):
        text = f"{value:,.{digits}f}"
    elif is_number:
        text = f"{value:,}"
    raw = f' data-value="{value}"' if is_number else ""
    return f"<td{_class(is_number)}{raw}>{html.escape(text)}</td>"


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""
