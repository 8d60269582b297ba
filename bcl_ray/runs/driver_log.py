"""The log of a driver: what libraries log in its process goes to a file, not to the terminal."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

FILE = "driver.log"


class _LogFile(logging.FileHandler):
    """A file whose disk may be full: what cannot be written is lost, and nothing is printed."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """By default the traceback of each line that is lost goes to the terminal."""


@contextlib.contextmanager
def log_to_file(folder: Path, keep: Callable[[], bool]) -> Iterator[None]:
    """Send what is logged in this process to a folder's driver.log.

    Args:
        folder: of a run or a search; it is made.
        keep: whether a line may still be written: not after another driver has taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(folder / FILE, delay=True)
    handler.addFilter(lambda _: keep())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Once Ray is imported, what it logs does not reach the root.
    named = (logging.getLogger(), logging.getLogger("ray"))
    loggers = [logger for logger in named if logger.parent is None or not logger.propagate]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # what is left in the buffer is lost as well
            handler.close()
