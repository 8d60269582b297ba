"""The terminal, as all commands use it."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MINUTE, HOUR = 60, 3600  # seconds


def console() -> "Console":
    """Standard output; 120 columns wide if it is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def print_line(screen: "Console", text: str, style: str | None = None) -> None:
    """Print text as it is, without markup and line breaks, because it may contain paths."""
    screen.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A number of seconds as text, in the unit that fits."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"


def quiet() -> None:
    """Keep log messages and warnings of libraries off the terminal.

    `bcl_ray.training.driver.fit` writes them to a file.
    """
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)


@contextmanager
def silence_ray_core() -> Iterator[None]:
    """Discard what is written to file descriptor 2.

    Ray's core writes its messages there directly, not through Python; they are also in its log
    files.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def progress_bars() -> Iterator[Any]:
    """Progress bars with rate and remaining time.

    Yields:
        A function of a task's name, the number of images done, and their total; the `progress`
        callback of functions that write or verify shards.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[rate]}"),
    )
    with progress.Progress(*columns, console=console(), disable=not sys.stdout.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, rate="")
            speed = bars.tasks[tasks[name]].speed
            text = f"{speed:,.0f} images/s" if speed else ""
            bars.update(tasks[name], completed=done, total=total, rate=text)

        yield advance
