"""A journal on the local disk, and the thread that hands its entries on.

Whoever records something waits for the disk, never for the target: one that is slow, or down,
gets what it missed when it is back. It is given entries in order, and again from the first one
in another process, so it must take an entry that it already has without harm.
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What a journal is about: a training run, or a search that is the parent of many.

    Args:
        uid: 32 hex digits, by which the target finds it again; stable over resumes.
        name: for a person.
        experiment: of MLflow, which holds it; a parent and its children share one.
        parameters: options, told once.
        tags: told when it is first made.
    """

    uid: str
    name: str
    experiment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """The target will not take an entry, however often it is offered."""


class Journal:
    """A file of one JSON object a line.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def entries(self) -> list[Entry]:
        """What was recorded; a last line that a crash cut short is left out.

        Raises:
            ValueError: another line that is no entry.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [self._entry(line, number) for number, line in enumerate(lines, start=1)]

    def append(self, entry: Entry) -> None:
        """Record an entry. It survives the death of the process, not a power cut."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._cut_torn_line()
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
                f"{self.path}, line {number}, is no entry of a journal: remove that line, or move "
                "the file away to go on without what is in it"
            ) from None

    def _cut_torn_line(self) -> None:
        """What is appended to a torn line would be lost with it."""
        if self.path.exists():
            content = self.path.read_bytes()
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


class Delivery:
    """Hands a journal's old and new entries to a target, from a thread of its own.

    Args:
        journal: where entries are recorded first.
        lease: of the run's folder. Nothing is recorded or handed on while another driver may have
            it, and nothing any more once one has.
        connect: makes what writes an entry to the target; called in the thread, with the time
            of the entry that is to be written, and again after every failure. What it and its
            result raise is a failure to be repeated, but for RefusedError, which gives up the
            entry.
    """

    def __init__(
        self, journal: Journal, connect: Callable[[float], Write], lease: Lease | None = None
    ) -> None:
        self._journal, self._connect, self._lease = journal, connect, lease
        self._entries: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        for entry in journal.entries():
            self._entries.put(entry)
        self._unwritten: list[Entry] = []
        self._order = threading.Lock()  # of the journal and of the queue, for several threads
        self._stop = threading.Event()
        self._failure: str | None = None
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._deliver, name="delivery", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why the target has not got everything; none where nothing is known to be wrong."""
        failure = [self._failure] if self._failure else []
        return "; ".join([*self._refused, *failure]) or None

    def record(self, entry: Entry) -> None:
        """Record an entry, and hand it on when its turn comes. Does not wait for the target."""
        with self._order:
            self._unwritten.append({**entry, "time": time.time()})
            if self._lease is None or self._lease.valid:
                self._write_down()

    def drain(self, patience: float) -> bool:
        """Stop; whether the target has got everything within `patience` seconds."""
        if self._lease is not None and self._lease.lost is not None:
            self._stop.set()
        else:
            with self._order:
                self._write_down()
        self._entries.put(None)
        self._thread.join(patience)
        delivered = not self._thread.is_alive()
        if not delivered and self._failure is None:
            self._failure = f"no answer within {patience:g} s"
        self._stop.set()
        self._journal.close()
        return delivered and not self._refused

    def _write_down(self) -> None:
        """Record what waits for it: the journal is another's where that one has the run."""
        for entry in self._unwritten:
            self._journal.append(entry)
            self._entries.put(entry)
        self._unwritten.clear()

    def _deliver(self) -> None:
        pause, write = FIRST_PAUSE, None
        entry = self._entries.get()
        while entry is not None and not self._stop.is_set():
            if self._lease is not None and not self._lease.valid:
                self._failure = "the run's folder does not answer, or another driver has it"
                self._stop.wait(FIRST_PAUSE)
                continue
            try:
                write = write or self._connect(entry["time"])
                write(entry)
            except RefusedError as error:
                self._refused.append(str(error))
                logger.warning("an entry was given up: %s", error)
            except Exception as error:  # whatever a target raises: nobody else may notice
                self._failure = _one_line(error)
                logger.info("the target failed: %s", self._failure)
                write = None
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._failure, pause = None, FIRST_PAUSE
            entry = self._entries.get()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
