"""How a command ends after an error: the last line that it prints, and its exit status."""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from subprocess import SubprocessError

import typer

from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.machine.messages import notify


@contextlib.contextmanager
def report_stop() -> Iterator[None]:
    """Report the reason of a stop, and exit with 128 and the signal's number.

    Typer turns Ctrl-C into a silent 130 before `main` sees it.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        notify(str(stop) or "stopped")
        raise typer.Exit(128 + getattr(stop, "signum", signal.SIGINT)) from None


def describe(error: Exception) -> tuple[str, int]:
    """The line that reports an error, and the exit status.

    The status is 2 for a mistake of the user, and 1 for an error that may be temporary.
    """
    from bcl_ray.storage.retry import TransientError

    if isinstance(error, ModuleNotFoundError):
        return f"{error}: pip install 'bcl-ray[train]' has all that a run needs", 2
    if isinstance(error, TransientError | ConnectionError | TimeoutError | FailedError):
        return str(error), 1
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of pathlib
        return f"user {os.getuid()} has no home: set HOME to a folder that it may write to", 2
    if isinstance(error, UserError | OSError | SubprocessError):
        return str(error), 2
    return _describe_unexpected(error), 1


def _describe_unexpected(error: Exception) -> str:
    """The error and a file with its traceback; the traceback itself if no file can be written."""
    from bcl_ray.storage.paths import user_cache

    lines = traceback.format_exception(error)
    last = lines[-1].strip().replace("\n", " ")
    try:
        folder = user_cache() / "bcl_ray"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"error-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}.txt"
        file.write_text("".join(lines))
    except OSError:
        return "".join(lines).rstrip()
    return f"{last} (a fault of bcl_ray itself? the traceback is in {file})"
