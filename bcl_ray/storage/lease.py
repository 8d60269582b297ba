"""One driver at a time for a folder, wherever it lies: a lease in it, and a number that grows.

Its holder raises a count in <folder>/driver.lease every few seconds. Who finds the file unchanged
for SECONDS of its own clock takes the folder over, with the next number; clocks of machines are
never compared. All that changes the folder asks the file first (`Fence.check`), so that a driver
that was frozen or cut off, and replaced, changes nothing any more. A successor waits SETTLE before
it begins, so that what was asked for just before has landed. A process that stands still for longer
than that, between its question and its write, is what no file can keep from writing.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from bcl_ray.storage import files, s3
from bcl_ray.storage.fence import (
    LEASE,
    Fence,
    LeaseHeldError,
    LeaseLostError,
    LeaseNotRenewedError,
    Record,
    lost,
    own_record,
    parsed,
)
from bcl_ray.storage.retry import PATIENCE as OUTAGE
from bcl_ray.storage.swap import ChangedError, File, Version, file_at

EVERY = 5.0  # seconds between renewals
SETTLE = 5.0  # seconds in which what a predecessor had begun to write lands
READ_BACK = 2.0  # seconds in which another's write is seen, where a store does not compare
RELEASES = 3  # attempts to give a lease back
LOOK = 1.0  # seconds between two looks at another's lease, or two attempts to renew
# Seconds to wait for a live holder: one that was asked to stop has 60, and MLflow 10 after that.
PATIENCE = 120.0
MARGIN = 5.0  # seconds before its end from which a holder does not rely on a lease

logger = logging.getLogger(__name__)

Notify = Callable[[str], None]


def acquire_lease(
    folder: str, what: str, notify: Notify, *, wait: bool, remove: bool = False
) -> AbstractContextManager["Lease"]:
    """Have a folder for this driver alone: `LeaseRequest.held`, for whoever looks no earlier."""
    return LeaseRequest(folder, what, notify).acquire(wait=wait, remove=remove)


def clock() -> float:
    """Seconds on a clock that goes on while this process or the machine stands still."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """A lease that this process has, and renews from a thread.

    Args:
        file: of the lease; uri: where it is.
        record, version: what was written there.
        begun: time of `clock` when that was begun.
    """

    def __init__(
        self, file: File, uri: str, record: Record, version: Version, *, begun: float
    ) -> None:
        self.fence = Fence(uri, record.number, record.token)
        self.lost: LeaseLostError | None = None
        self._file, self._record, self._version = file, record, version
        self._renewed = begun
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def valid(self) -> bool:
        """Whether nobody else can have the folder now, as far as this process's clock tells."""
        return self.lost is None and clock() - self._renewed < self._record.seconds - MARGIN

    def check(self) -> None:
        """As `Fence.check`, of this process."""
        if self.lost is not None:
            raise self.lost
        self.fence.check()

    def poll(self) -> LeaseLostError | None:
        """Whether it is lost, asked now; None too where the folder does not answer."""
        try:
            self.check()
        except LeaseLostError as error:
            self.mark_lost(error)
        except OSError as error:
            logger.warning("%s", error)
        return self.lost

    def mark_lost(self, error: LeaseLostError) -> None:
        """Take notice of what another process of this driver has found."""
        self.lost = self.lost or error

    def release(self, *, remove: bool = False) -> None:
        """Give it back, so that nobody need wait; where that fails, it runs out."""
        self._end.set()
        self._thread.join()
        for _ in range(RELEASES):
            if self.lost is None and self._write(replace(self._record, released=True)):
                if remove:
                    with contextlib.suppress(OSError):  # a released lease holds nobody up
                        self._file.remove(self._version)
                return

    def _keep(self) -> None:
        pause = EVERY
        while not self._end.wait(pause) and self.lost is None:
            beat = replace(self._record, beats=self._record.beats + 1)
            pause = EVERY if self._write(beat) else LOOK

    def _write(self, record: Record) -> bool:
        """Renew or end the lease; whether that was done."""
        begun = clock()
        try:
            self._version = self._file.replace(record.encoded(), self._version)
        except Exception as error:  # of whatever kind: the folder's store does not answer
            self._look_again(error)
            return False
        self._record, self._renewed = record, begun
        return True

    def _look_again(self, error: Exception) -> None:
        """After an attempt that failed: it may have come to pass all the same."""
        uri = self.fence.uri
        try:
            with files.explain_errors(uri):
                if not isinstance(error, ChangedError):
                    raise error
                found = self._file.read()
                record = parsed(found, uri)
        except Exception as again:
            logger.warning("%s was not renewed: %s", uri, again)
            if isinstance(again, PermissionError):
                s3.forget()  # the credentials may have been renewed since
            if clock() - self._renewed > OUTAGE:
                text = f"{uri} could not be renewed for {OUTAGE:g} s: {again}"
                self.mark_lost(LeaseNotRenewedError(text))
            return
        if found is None or record is None or record.token != self.fence.token:
            self.mark_lost(lost(self.fence, record))
            return
        self._version, self._record = found, record


class LeaseRequest:
    """Of this process, to a folder that another driver may have.

    Args:
        folder: path or URI; need not exist.
        what: it holds, for a person: "run 'first'".
        notify: called with messages for the user.
    """

    def __init__(self, folder: str, what: str, notify: Notify) -> None:
        self._uri = files.join(folder, LEASE)
        self._what, self._notify = what, notify
        self._file = file_at(self._uri)
        self._begun = self._changed = clock()  # when the file was first seen, and seen as it is
        self._seen: Version | None = None
        self._changes = 0  # that were seen, the first look included
        self._told = False

    @contextlib.contextmanager
    def acquire(self, *, wait: bool, remove: bool = False) -> Iterator["Lease"]:
        """Have the folder for this driver alone.

        Args:
            wait: for another driver, until it has ended or has given no sign of life for SECONDS;
                for one that is alive PATIENCE at most. Else only a sign of life is waited for, of
                a driver on another machine: SECONDS at most, after which it is dead.
            remove: the lease's file at the end: nobody is to change the folder afterwards.

        Raises:
            LeaseHeldError: another driver has it, and is not waited for any longer.
        """
        lease = self._taken(wait=wait)
        try:
            yield lease
        finally:
            lease.release(remove=remove)

    def _taken(self, *, wait: bool) -> Lease:
        """The lease, when it is ours."""
        while True:
            record, version = self.check_free(wait=wait)
            if (lease := self._written(record, version)) is None:
                continue  # another driver was faster
            if record is not None and not record.released:
                self._notify(f"{self._what} was left by {record.who}: taking it over")
                time.sleep(SETTLE)
            return lease

    def check_free(self, *, wait: bool) -> tuple[Record | None, Version | None]:
        """Look, before anything expensive starts, and wait as `held` does, which takes it.

        Returns:
            What stands in the file when nobody has the folder any longer.

        Raises:
            LeaseHeldError: as `held`.
        """
        while True:
            found = files.with_retries(self._file.read, self._uri)
            if found != self._seen:
                self._seen, self._changed = found, clock()
                self._changes += 1
            record = parsed(found, self._uri)
            if record is None or record.released or record.is_dead:
                return record, found
            if clock() - self._changed > record.seconds:
                return record, found
            self._wait(record, wait=wait)

    def _wait(self, record: Record, *, wait: bool) -> None:
        used = f"in use by {record.who}"
        if not wait and (record.is_here or self._changes > 1):
            raise LeaseHeldError(
                f"{self._what} is {used}; wait for it, or stop it. If it is dead, its lease runs "
                f"out {record.seconds:g} s after its last sign of life: try again then"
            )
        now = clock()
        if now - self._begun > PATIENCE and now - self._changed < 2 * EVERY:
            raise LeaseHeldError(
                f"{self._what} is still {used}, which is alive: stop it, or leave the work to it"
            )
        if not self._told:
            self._told = True
            ended = f"until it has ended, {PATIENCE:g} s at most, or has given" if wait else "for"
            no = "no sign" if wait else "a sign"
            self._notify(
                f"{self._what} is {used}; waiting {ended} {no} of life for {record.seconds:g} s"
            )
        time.sleep(LOOK)

    def _written(self, before: Record | None, old: Version | None) -> Lease | None:
        """The lease, if no other driver was faster."""
        begun, record, file, uri = clock(), own_record(before), self._file, self._uri
        try:
            version = files.with_retries(lambda: file.replace(record.encoded(), old), uri)
        except ChangedError:
            return None
        if not files.with_retries(lambda: file.compares(version), uri):
            self._notify(
                f"the store of {self._what} does not compare before it writes: a second driver is "
                "kept off only as far as what is written there can be read at once"
            )
            time.sleep(READ_BACK)
            found = parsed(files.with_retries(file.read, uri), uri)
            if found is None or found.token != record.token:
                return None
        return Lease(file, uri, record, version, begun=begun)
