"""The check before each change of a folder: whether this driver still has its lease."""

from dataclasses import dataclass

from bcl_ray.storage import files, paths
from bcl_ray.storage.lease_record import LeaseRecord, parse_record
from bcl_ray.storage.retry import TransientError
from bcl_ray.storage.versioned_file import versioned_file


class LeaseHeldError(TransientError):
    """Another driver has the folder; the text says which, and how long to wait."""


class LeaseLostError(OSError):
    """This driver has lost the folder to another one, and must not change it any more."""


class LeaseNotRenewedError(LeaseLostError, TransientError):
    """The lease's store has not answered for so long that this driver ends."""


@dataclass(frozen=True)
class Fence:
    """A check that any process of a driver can make; it may be pickled."""

    uri: str  # of the lease's file
    number: int  # of the driver's record
    token: str  # of the driver's record

    def check(self) -> None:
        """Check that this driver still has the folder.

        Raises:
            LeaseLostError: Another driver has it, or the lease's file was deleted.
            OSError: The file cannot be read.
        """
        version = files.with_retries(versioned_file(self.uri).read, self.uri)
        record = parse_record(version, self.uri)
        if record is None or record.token != self.token:
            raise self.lost_to(record)

    def __call__(self) -> None:
        """Same as `check`: a fence can be the guard of `files.atomic_filesystem`.

        The cache of filesystems hashes their guards: equal fences are equal keys, and bound methods
        of equal fences are not.
        """
        self.check()

    def lost_to(self, record: LeaseRecord | None) -> LeaseLostError:
        """The error for a lease whose file now has another holder's record, or is gone."""
        reason = (
            f"{record.holder}, has it now as number {record.number}"
            if record
            else "its lease was deleted"
        )
        return LeaseLostError(
            f"this driver, number {self.number}, gave no sign of life for a while, and {reason}: "
            f"it ends, and changes nothing more in {paths.parent(self.uri)}"
        )
