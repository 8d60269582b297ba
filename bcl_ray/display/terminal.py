"""What every command needs of the terminal."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Standard output; 120 columns where it is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def print_line(screen: "Console", text: str, style: str | None = None) -> None:
    """Print text that may hold paths and errors: markup in it is not read, and lines stay whole."""
    screen.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def quiet() -> None:
    """Keep the libraries' own messages off the terminal; `fit` sends them to a file."""
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)


@contextmanager
def silent_core() -> Iterator[None]:
    """Nothing on file descriptor 2: Ray's core writes there past Python; its log files have it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def progress_bars() -> Iterator[Any]:
    """A bar with rate and time left, as the callback that writing and verifying shards take."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, rate, console=console(), disable=not sys.stdout.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, rate="")
            speed = bars.tasks[tasks[name]].speed
            text = f"{speed:,.0f} images/s" if speed else ""
            bars.update(tasks[name], completed=done, total=total, rate=text)

        yield advance
