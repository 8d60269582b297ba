"""How a driver takes the lease of a folder that another driver may have."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from bcl_ray.storage import files
from bcl_ray.storage.fence import LeaseHeldError
from bcl_ray.storage.file_version import ChangedError, FileVersion
from bcl_ray.storage.lease import RENEWAL_SECONDS, Lease, clock
from bcl_ray.storage.lease_record import LEASE_FILE, LeaseRecord, new_record, parse_record
from bcl_ray.storage.versioned_file import versioned_file

POLL_SECONDS = 1.0  # between two looks at another driver's lease
# How long to wait for a holder that is alive. One that was asked to stop takes up to 60 s, and then
# up to 10 s to deliver to MLflow.
WAIT_SECONDS = 120.0
SETTLE_SECONDS = 5.0  # in which the last writes of a driver that was replaced arrive
# In a store that cannot replace a file atomically: after a write, how long to wait before reading
# the file, to see whether another driver has overwritten it.
READ_BACK_SECONDS = 2.0

Notify = Callable[[str], None]


def acquire_lease(
    folder: str, what: str, notify: Notify, *, wait: bool, remove: bool = False
) -> AbstractContextManager[Lease]:
    """Same as `LeaseRequest.acquire`, for callers that do not check earlier."""
    return LeaseRequest(folder, what, notify).acquire(wait=wait, remove=remove)


class LeaseRequest:
    """A request of this process for the lease of a folder.

    Another driver may have the lease. Whether a driver on this machine is alive is known at once. A
    driver on another machine is alive if it renews its lease, and dead if it has not done so for
    LEASE_SECONDS. With `wait`, the request waits for the other driver to end, for WAIT_SECONDS at
    most while it is alive. Without, the request fails once the other driver is known to be alive.

    `acquire` continues from what `check_free` has seen of the other driver.

    Args:
        folder: Path or URI of the folder; need not exist.
        what: What the folder holds, for messages, such as "run 'first'".
        notify: Called with messages for the user.
    """

    def __init__(self, folder: str, what: str, notify: Notify) -> None:
        self._uri = files.join(folder, LEASE_FILE)
        self._what, self._notify = what, notify
        self._file = versioned_file(self._uri)
        self._started_at = self._changed_at = clock()
        self._seen: FileVersion | None = None  # as of `_changed_at`
        self._versions_seen = 0  # how many different ones, the first included
        self._notified = False

    def check_free(self, *, wait: bool) -> None:
        """Check, before anything expensive starts, that no other driver has the folder.

        Raises:
            LeaseHeldError: Another driver has it.
        """
        self._wait_until_free(wait=wait)

    @contextlib.contextmanager
    def acquire(self, *, wait: bool, remove: bool = False) -> Iterator[Lease]:
        """Have the folder for this driver alone.

        Args:
            wait: Wait for another driver to end.
            remove: Delete the lease's file at the end, if nobody is to change the folder later.

        Raises:
            LeaseHeldError: Another driver has it.
        """
        lease = self._take(wait=wait)
        try:
            yield lease
        finally:
            lease.release(remove=remove)

    def _take(self, *, wait: bool) -> Lease:
        while True:
            record, version = self._wait_until_free(wait=wait)
            if (lease := self._try_to_write(record, version)) is None:
                continue  # another driver was faster
            if record is not None and not record.released:
                self._notify(f"{self._what} was left by {record.holder}: taking it over")
                time.sleep(SETTLE_SECONDS)
            return lease

    def _wait_until_free(self, *, wait: bool) -> tuple[LeaseRecord | None, FileVersion | None]:
        """Wait for another driver; returns the last holder's record, and the file's version."""
        while True:
            version = files.with_retries(self._file.read, self._uri)
            if version != self._seen:
                self._seen, self._changed_at = version, clock()
                self._versions_seen += 1
            record = parse_record(version, self._uri)
            if record is None or record.released or record.is_dead:
                return record, version
            if clock() - self._changed_at > record.seconds:  # the lease has run out
                return record, version
            self._check_waiting(record, wait=wait)
            self._notify_once(record, wait=wait)
            time.sleep(POLL_SECONDS)

    def _check_waiting(self, record: LeaseRecord, *, wait: bool) -> None:
        """Raise LeaseHeldError if the other driver is not to be waited for any longer."""
        used = f"in use by {record.holder}"
        if not wait and (record.is_here or self._versions_seen > 1):
            raise LeaseHeldError(
                f"{self._what} is {used}; wait for it, or stop it. If it is dead, its lease runs "
                f"out {record.seconds:g} s after its last sign of life: try again then"
            )
        now = clock()
        waited_enough = now - self._started_at > WAIT_SECONDS
        is_alive = now - self._changed_at < 2 * RENEWAL_SECONDS  # otherwise its lease runs out soon
        if waited_enough and is_alive:
            raise LeaseHeldError(
                f"{self._what} is still {used}, which is alive: stop it, or leave the work to it"
            )

    def _notify_once(self, record: LeaseRecord, *, wait: bool) -> None:
        if self._notified:
            return
        self._notified = True
        until = (
            f"until it has ended, {WAIT_SECONDS:g} s at most, or has given no sign of life for "
            if wait
            else "for a sign of life for "
        )
        self._notify(
            f"{self._what} is in use by {record.holder}; waiting {until}{record.seconds:g} s"
        )

    def _try_to_write(
        self, old_record: LeaseRecord | None, old_version: FileVersion | None
    ) -> Lease | None:
        """Replace the last holder's record by this process's; None if another driver was faster."""
        written_at, record = clock(), new_record(old_record)
        try:
            version = files.with_retries(
                lambda: self._file.replace(record.to_bytes(), old_version), self._uri
            )
        except ChangedError:
            return None
        if not files.with_retries(lambda: self._file.replaces_atomically(version), self._uri):
            self._notify(
                f"the store of {self._what} has no atomic conditional writes: a second driver that "
                "starts at the same moment is noticed only if its write can be read within "
                f"{READ_BACK_SECONDS:g} s"
            )
            time.sleep(READ_BACK_SECONDS)
            current = parse_record(files.with_retries(self._file.read, self._uri), self._uri)
            if current is None or current.token != record.token:
                return None
        return Lease(self._file, self._uri, record, version, written_at=written_at)
