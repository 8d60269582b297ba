"""Rows as CSV, from which any text can be read back as it was."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Lines of CSV that end with a line feed.

    Texts stay as they are, also one that begins with '=', which a spreadsheet takes for a formula:
    names are there to be matched.
    """
    text = io.StringIO()
    # By itself, Python 3.11 quotes only those characters that end its lines, so not all of these.
    writer = csv.writer(text, lineterminator="\r\n")
    lines = []
    for row in rows:
        writer.writerow(row)
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        text.seek(0)
        text.truncate()
    return "".join(lines)
