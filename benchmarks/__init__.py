"""Measured claims: `python -m benchmarks.<name>` prints a table; its last line is the ratio."""

import statistics
import time
from collections.abc import Callable, Sequence


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Median seconds of one call of each side, measured in turn so that both see the same machine.

    One unmeasured call of each comes first: it pays for caches, pages and lazy imports.
    """
    sides = (first, second)
    for side in sides:
        side()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, taken in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side()
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a title: the first column to the left, the others to the right."""
    from rich.console import Console  # noqa: PLC0415 - `gpu` measures where there is no rich
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)
