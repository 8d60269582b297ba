"""A lease on a folder, so that it has one driver at a time, wherever it lies.

The holder renews the lease every few seconds: it increments a count in <folder>/driver.lease. A
driver that sees the file unchanged for `lease_record.LEASE_SECONDS` takes the folder over, with the
next number; clocks of different machines are never compared. Everything that changes the folder
checks the file first (`Fence.check`). So a driver that was frozen or cut off, and was replaced,
changes nothing any more. Its successor waits for `lease_request.SETTLE_SECONDS` before it begins:
by then, what was written just after a check has arrived. Only a process that stands still for
longer than that, between its check and its write, can still write.
"""

import contextlib
import logging
import threading
import time
from dataclasses import replace

from bcl_ray.storage import files, s3
from bcl_ray.storage.fence import Fence, LeaseLostError, LeaseNotRenewedError
from bcl_ray.storage.file_version import ChangedError, FileVersion
from bcl_ray.storage.lease_record import LeaseRecord, parse_record
from bcl_ray.storage.retry import RETRY_SECONDS as OUTAGE_SECONDS
from bcl_ray.storage.versioned_file import VersionedFile

RENEWAL_SECONDS = 5.0  # between two renewals
RENEWAL_RETRY_SECONDS = 1.0  # between two attempts to renew
MARGIN_SECONDS = 5.0  # before its lease runs out, a holder stops relying on it
RELEASE_ATTEMPTS = 3

logger = logging.getLogger(__name__)


def clock() -> float:
    """Seconds on a clock that goes on while this process or the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """A lease that this process has taken, and renews in a thread.

    Args:
        file: The lease's file.
        uri: Its path or URI.
        record: The record that this process has written to it.
        version: The file's version with this record.
        written_at: Time of `clock` just before that write.
    """

    def __init__(
        self,
        file: VersionedFile,
        uri: str,
        record: LeaseRecord,
        version: FileVersion,
        *,
        written_at: float,
    ) -> None:
        self.fence = Fence(uri, record.number, record.token)
        self.lost: LeaseLostError | None = None
        self._file, self._record, self._version = file, record, version
        self._renewed_at = written_at
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def valid(self) -> bool:
        """Whether, by this process's clock, no other driver can have the folder now."""
        usable_seconds = self._record.seconds - MARGIN_SECONDS
        return self.lost is None and clock() - self._renewed_at < usable_seconds

    def check(self) -> None:
        """Same as `Fence.check`, without access to the file once the lease is lost."""
        if self.lost is not None:
            raise self.lost
        self.fence.check()

    def poll(self) -> LeaseLostError | None:
        """Check now whether the lease is lost; None also if the file cannot be read."""
        try:
            self.check()
        except LeaseLostError as error:
            self.mark_lost(error)
        except OSError as error:
            logger.warning("%s", error)
        return self.lost

    def mark_lost(self, error: LeaseLostError) -> None:
        """Record that this or another process of the driver has found the lease lost."""
        self.lost = self.lost or error

    def release(self, *, remove: bool = False) -> None:
        """Give the lease back, so that nobody has to wait; if that fails, it runs out.

        Args:
            remove: Delete the lease's file, if nobody is to change the folder afterwards.
        """
        self._end.set()
        self._thread.join()
        for _ in range(RELEASE_ATTEMPTS):
            if self.lost is None and self._write(replace(self._record, released=True)):
                if remove:
                    with contextlib.suppress(OSError):  # a released lease blocks nobody
                        self._file.remove(self._version)
                return

    def _renew(self) -> None:
        pause = RENEWAL_SECONDS
        while not self._end.wait(pause) and self.lost is None:
            is_renewed = self._write(replace(self._record, beats=self._record.beats + 1))
            pause = RENEWAL_SECONDS if is_renewed else RENEWAL_RETRY_SECONDS

    def _write(self, record: LeaseRecord) -> bool:
        """Write a record of this holder; returns whether that succeeded."""
        now = clock()
        try:
            self._version = self._file.replace(record.to_bytes(), self._version)
        except Exception as error:  # errors of any kind, also of a store's libraries
            self._read_after_failure(error)
            return False
        self._record, self._renewed_at = record, now
        return True

    def _read_after_failure(self, error: Exception) -> None:
        """Find out whether the lease is lost, after an attempt to write it has failed."""
        uri = self.fence.uri
        try:
            with files.explain_errors(uri):
                if not isinstance(error, ChangedError):
                    raise error
                version = self._file.read()
                record = parse_record(version, uri)
        except Exception as reason:
            logger.warning("%s was not renewed: %s", uri, reason)
            if isinstance(reason, PermissionError):
                s3.forget_clients()  # the credentials may have been renewed
            if clock() - self._renewed_at > OUTAGE_SECONDS:
                text = f"{uri} could not be renewed for {OUTAGE_SECONDS:g} s: {reason}"
                self.mark_lost(LeaseNotRenewedError(text))
            return
        if version is None or record is None or record.token != self.fence.token:
            self.mark_lost(self.fence.lost_to(record))
        else:  # the write succeeded, and only its answer was lost
            self._version, self._record = version, record
