"""How a command ends whose work has begun: its exit status, and the last line that it prints."""

import contextlib
import signal
import sys
from collections.abc import Iterator

import typer

from bcl_ray.machine.errors import FailedError


@contextlib.contextmanager
def exit_status() -> Iterator[None]:
    """1 for work that failed, 128 and the signal's number for work that was stopped."""
    try:
        yield
    except FailedError as error:
        sys.stderr.write(f"bcl-ray: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"bcl-ray: {str(stop) or 'stopped'}\n")
        raise typer.Exit(128 + getattr(stop, "signum", signal.SIGINT)) from None
