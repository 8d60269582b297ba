"""A journal on the local disk, and its delivery to a target by a thread.

Recording an entry waits for the disk, never for the target: a target that is slow or down gets the
entries when it is back. Another process delivers the whole journal again from its first entry, so
writing an entry that the target already has must change nothing.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from bcl_ray.machine.errors import UserError
from bcl_ray.storage.lease import Lease

Entry = dict[str, Any]
Write = Callable[[Entry], None]

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts to reach a target that is down
NOT_OURS = "the run's folder does not answer, or another driver holds it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What a journal is about: a training run, or a search that is the parent of many."""

    uid: str
    """32 hex digits, by which the target finds the subject again, also after a resume."""
    name: str
    """Name for people."""
    experiment: str
    """MLflow's experiment; a parent and its children are in the same one."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Options, which are recorded once."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags, which are set when the target creates the subject."""


class RefusedError(Exception):
    """The target will never accept an entry."""


class BlockedError(Exception):
    """The target accepts nothing until a person acts; the text says what to do."""


class Journal:
    """A file with one JSON object per line.

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def entries(self) -> list[Entry]:
        """The recorded entries, without a last line that a crash has left incomplete.

        Raises:
            ValueError: Another line is not an entry.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [self._entry(line, number) for number, line in enumerate(lines, start=1)]

    def append(self, entry: Entry) -> None:
        """Record an entry. It survives the end of the process, but not a power failure."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_incomplete_line()
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _entry(self, line: bytes, number: int) -> Entry:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            raise UserError(
                f"{self.path}, line {number}, is not an entry of a journal: remove the line, or "
                "move the file away to continue without its entries"
            ) from None

    def _remove_incomplete_line(self) -> None:
        """Otherwise the next entry would become part of that line and be lost."""
        if self.path.exists():
            content = self.path.read_bytes()
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


class Delivery:
    """Delivers the old and new entries of a journal to a target, in a thread of its own.

    Args:
        journal: Where entries are recorded before they are delivered.
        connect: Returns the function that writes an entry to the target. Called in the thread,
            first and after every failure, with the time of the entry to be written. Any exception
            of it or of that function is a failure, after which the entry is tried again; only
            after RefusedError it is skipped. After BlockedError, `drain_and_stop` does not wait.
        lease: The lease of the run's folder, if it has one. While it is not known to be ours,
            entries wait in memory, and nothing is delivered. Once another driver has it, nothing
            is recorded or delivered any more.
    """

    def __init__(
        self, journal: Journal, connect: Callable[[float], Write], lease: Lease | None = None
    ) -> None:
        self._journal, self._connect, self._lease = journal, connect, lease
        self._entries: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        for entry in journal.entries():
            self._entries.put(entry)
        self._unrecorded: list[Entry] = []  # until the lease is known to be ours
        self._order = threading.Lock()  # the same order in the journal and in the queue
        self._stop = threading.Event()
        self._failure: str | None = None
        self._blocked = threading.Event()  # a person must act first
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._deliver, name="delivery", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why the target does not have all entries; None if no reason is known."""
        failure = [self._failure] if self._failure else []
        return "; ".join([*self._refused, *failure]) or None

    def record(self, entry: Entry) -> None:
        """Record an entry and queue it for delivery, without waiting for the target."""
        with self._order:
            self._unrecorded.append({**entry, "time": time.time()})
            if self._lease is None or self._lease.valid:
                self._record_waiting()

    def drain_and_stop(self, patience: float) -> bool:
        """Deliver the remaining entries, then end the thread.

        Args:
            patience: Longest time to wait for the target, in seconds.

        Returns:
            Whether the target has all entries.
        """
        is_lost = self._lease is not None and self._lease.lost is not None
        if is_lost:  # what was not delivered before is the other driver's
            self._failure = NOT_OURS
            self._stop.set()
        else:
            # This is the last chance to record what waits, though the lease may not be valid now.
            with self._order:
                self._record_waiting()
        self._entries.put(None)
        end = time.monotonic() + patience
        while self._thread.is_alive() and time.monotonic() < end and not self._blocked.is_set():
            self._thread.join(min(0.1, patience))
        delivered = not self._thread.is_alive()
        if not delivered and self._failure is None:
            self._failure = f"no answer within {patience:g} s"
        self._stop.set()
        self._journal.close()
        return delivered and not is_lost and not self._refused

    def _record_waiting(self) -> None:
        """Record the entries that wait in memory; called with `_order` held."""
        for entry in self._unrecorded:
            self._journal.append(entry)
            self._entries.put(entry)
        self._unrecorded.clear()

    def _deliver(self) -> None:
        pause, write = FIRST_PAUSE, None
        entry = self._entries.get()
        while entry is not None and not self._stop.is_set():
            if self._lease is not None and not self._lease.valid:
                self._failure = NOT_OURS
                self._stop.wait(FIRST_PAUSE)
                continue
            try:
                write = write or self._connect(entry["time"])
                write(entry)
            except RefusedError as error:
                self._refused.append(str(error))
                logger.warning("an entry was skipped: %s", error)
            except Exception as error:  # of any kind: otherwise the thread would end unnoticed
                self._failure = _one_line(error)
                if isinstance(error, BlockedError):
                    self._failure = str(error)
                    self._blocked.set()
                logger.info("the target failed: %s", self._failure)
                write = None
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._failure, pause = None, FIRST_PAUSE
            self._blocked.clear()
            entry = self._entries.get()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
