"""A report: one HTML file that needs no server and no other file."""

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
PIXELS = 1.4  # of an image per pixel of the page
# A click on a column's head sorts by it, and back.
SORT = """
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
    """Rows of strings and numbers; a number is shown with `digits` behind the point, None as -."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 1


@dataclass(frozen=True)
class PageSection:
    """A part of a page.

    Args:
        title: its heading.
        text: a paragraph each, plain text.
        figures: what to look at, with a description of each for those who cannot.
        table: below them.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[Figure | bytes, str]] = ()
    table: PageTable | None = None


def page(title: str, sections: Sequence[PageSection]) -> str:
    """A complete HTML page, whose images are inside of it."""
    parts = "\n".join(map(_section, sections))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{parts}\n"
        f"<script>{SORT}</script>\n</body>\n</html>\n"
    )


def _section(section: PageSection) -> str:
    lines = [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
    lines += [f"<p>{html.escape(text)}</p>" for text in section.text]
    lines += [_image(figure, about) for figure, about in section.figures]
    if section.table is not None:
        lines.append(_table(section.table))
    return "\n".join(lines)


def _image(figure: Figure | bytes, about: str) -> str:
    content = figure if isinstance(figure, bytes) else png(figure)
    data = base64.b64encode(content).decode()
    pixels = int.from_bytes(content[16:20], "big")  # where a PNG file has its width
    width, alt = round(pixels / PIXELS), html.escape(about, quote=True)
    return f'<img width="{width}" src="data:image/png;base64,{data}" alt="{alt}">'


def _table(table: PageTable) -> str:
    numeric = [
        all(isinstance(row[column], int | float | None) for row in table.rows)
        for column in range(len(table.columns))
    ]
    head = "".join(
        f"<th{_class(number)}>{html.escape(name)}</th>"
        for name, number in zip(table.columns, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(_cell(v, n, table.digits) for v, n in zip(row, numeric, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: Any, number: bool, digits: int) -> str:
    if value is None:
        return f"<td{_class(number)}>-</td>"
    text = f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}" if number else value
    raw = f' data-value="{value}"' if number else ""
    return f"<td{_class(number)}{raw}>{html.escape(str(text))}</td>"


def _class(number: bool) -> str:
    return ' class="number"' if number else ""
