"""Who has a folder, as a file in it says; and the question that comes before each change of it.

<folder>/driver.lease holds a `Record`. `lease` writes it; any process of a driver reads it.
"""

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bcl_ray.machine.versions import cluster_tags
from bcl_ray.storage import files
from bcl_ray.storage.retry import TransientError
from bcl_ray.storage.swap import Version, file_at

LEASE = "driver.lease"
SECONDS = 30.0  # that a lease lasts after it was last renewed


class LeaseHeldError(TransientError):
    """Another driver has the folder; says who, and how long to wait."""


class LeaseLostError(OSError):
    """This driver had the folder, and another has it now; it must not change it any more."""


class LeaseNotRenewedError(LeaseLostError, TransientError):
    """The lease's store did not answer for so long that this driver ends."""


@dataclass(frozen=True)
class Record:
    """What a lease's file holds.

    Args:
        number: grows with each holder.
        token: random, of this holder.
        beats: how often it has renewed the lease.
        seconds: that the lease lasts without a beat.
        released: the holder has ended, and given it back.
        host, pid, job, since: who it is, for a person; since: UTC.
        machine: boot and process namespace that the pid is of; "" where that is not known.
        started: of the process, in ticks since the boot; who has its pid later has another.
    """

    number: int
    token: str
    beats: int
    seconds: float
    released: bool
    host: str
    pid: int
    job: str
    since: str
    machine: str
    started: str

    @property
    def who(self) -> str:
        """The holder, for a person."""
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} of {self.host}, since {self.since} UTC"

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine, and would be seen."""
        return self.machine != "" and self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended: only where it would be seen."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's, of which /proc may tell nothing
            return False
        return _started(self.pid) != self.started

    def encoded(self) -> bytes:
        """As the file has it."""
        return json.dumps(asdict(self), indent=1).encode()


@dataclass(frozen=True)
class Fence:
    """What processes of a driver ask before they change its folder; any of them may have it.

    Args:
        uri: of the lease's file.
        number, token: of the holder that they belong to.
    """

    uri: str
    number: int
    token: str

    def check(self) -> None:
        """Make sure that nobody else has the folder.

        Raises:
            LeaseLostError: somebody has.
            OSError: it cannot be read.
        """
        found = parsed(files.with_retries(file_at(self.uri).read, self.uri), self.uri)
        if found is None or found.token != self.token:
            raise lost(self, found)

    def __call__(self) -> None:
        """As `check`."""
        self.check()


def parsed(found: Version | None, uri: str) -> Record | None:
    """What a lease's file holds; None where there is none.

    Raises:
        OSError: something else.
    """
    if found is None:
        return None
    try:
        return Record(**json.loads(found.data))
    except (TypeError, ValueError):
        raise OSError(
            f"{uri} is not as bcl_ray wrote it: delete it, when no driver of the folder is alive"
        ) from None


def lost(fence: Fence, now: Record | None) -> LeaseLostError:
    """What ends a driver that finds another's record, or none."""
    by = f"{now.who}, has it now as number {now.number}" if now else "and its lease was deleted"
    return LeaseLostError(
        f"this driver, number {fence.number}, gave no sign of life for a while, and {by}: it ends, "
        f"and changes nothing more in {fence.uri.replace('/' + LEASE, '')}"
    )


def own_record(before: Record | None) -> Record:
    """This process's, after that of another."""
    started = _started(os.getpid())
    return Record(
        number=1 if before is None else before.number + 1,
        token=secrets.token_hex(16),
        beats=0,
        seconds=SECONDS,
        released=False,
        host=socket.gethostname(),
        pid=os.getpid(),
        job=cluster_tags().get("job", ""),
        since=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        machine=_machine() if started else "",
        started=started,
    )


def _machine() -> str:
    """The boot and the process namespace that this process's pid is of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> str:
    """When a process of this machine was started; "" where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    ended = fields[0] in "ZX"  # only its parent has not noticed
    return "" if ended else fields[19]
