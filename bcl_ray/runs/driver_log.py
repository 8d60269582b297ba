"""The log of a driver: messages of libraries go to a file, not to the terminal."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

LOG_FILE = "driver.log"


class _LogFileHandler(logging.FileHandler):
    """A handler that drops what it cannot write, as when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Do nothing. By default, each lost line would print a traceback."""


@contextlib.contextmanager
def log_to_file(folder: Path, may_write: Callable[[], bool]) -> Iterator[None]:
    """Write log messages of this process to a folder's driver.log.

    Args:
        folder: Folder of a run or a search; it is created.
        may_write: Called for each message; false drops it, once another driver has taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFileHandler(folder / LOG_FILE, delay=True)
    handler.addFilter(lambda _: may_write())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Once Ray is imported, its messages do not reach the root logger.
    candidates = (logging.getLogger(), logging.getLogger("ray"))
    loggers = [logger for logger in candidates if logger.parent is None or not logger.propagate]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # buffered messages are lost, too
            handler.close()
