"""Rows of what was measured, as a table and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, MISSED, SKIPPED, FAILED, LATE = "ok", "missed", "skipped", "failed", "late"
BROKEN = (FAILED, LATE)  # outcomes that are errors; a missed goal is a finding


@dataclass
class Row:
    """One line of the table."""

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    other: float | None = None
    """The same quantity of what it is compared with."""
    against: str = ""
    ratio: float | None = None
    """How many times better `value` is than `other`."""
    goal: float | None = None
    """The least ratio; None where nothing is asked for."""
    outcome: str = OK
    note: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    """For the JSON alone."""

    def __post_init__(self) -> None:
        if self.outcome == OK and self.goal is not None:
            reached = self.ratio is not None and self.ratio >= self.goal
            self.outcome = OK if reached else MISSED


def shown(number: float | None, unit: str = "") -> str:
    """A number as a person reads it: three digits that count."""
    if number is None or math.isnan(number):
        return "-"
    digits = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{min(digits, 4)}f} {unit}".rstrip()


COLUMNS = ("part", "what", "here", "there", "ratio", "goal", "outcome")


def table(rows: Sequence[Row]) -> str:
    """All rows under a head; notes stand below their row."""
    cells = [COLUMNS] + [
        (
            row.part,
            row.what,
            shown(row.value, row.unit),
            f"{shown(row.other)} {row.against}".strip() if row.against else "",
            shown(row.ratio) if row.ratio is not None else "",
            shown(row.goal) if row.goal is not None else "",
            row.outcome.upper() if row.outcome in (*BROKEN, MISSED) else row.outcome,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = []
    for number, line in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
        elif rows[number - 1].note:
            lines.append(f"{' ' * (widths[0] + 2)}  {rows[number - 1].note}")
    return "\n".join(lines)


def write(out: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """report.json and table.txt; called after every part, so that a kill loses nothing."""
    content = {**about, "rows": [asdict(row) for row in rows]}
    (out / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "table.txt").write_text(table(rows) + "\n")
