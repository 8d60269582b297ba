"""The record of who drives a folder, in the file driver.lease, and the process that it names."""

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bcl_ray.machine.versions import cluster_tags
from bcl_ray.storage.file_version import FileVersion

LEASE_FILE = "driver.lease"
LEASE_SECONDS = 30.0  # a lease runs out that long after its last renewal


@dataclass(frozen=True)
class LeaseRecord:
    """The content of driver.lease: one holder of the lease."""

    number: int  # one more than that of the holder before
    token: str  # random, identifies this holder
    beats: int  # how often the holder has renewed the lease
    seconds: float  # how long the lease lasts without a renewal
    released: bool  # the holder has ended
    host: str
    pid: int
    job: str  # empty if no scheduler started the process
    since: str  # UTC
    machine: str  # boot and process namespace that the pid belongs to, empty if unknown
    started: str  # when the process started, in ticks since the boot; a reused pid has another

    @property
    def holder(self) -> str:
        """The holder in words, for messages."""
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} of {self.host}, since {self.since} UTC"

    @property
    def is_here(self) -> bool:
        """Whether this process can see whether the holder lives."""
        return self.machine != "" and self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether the holder's process has certainly ended."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's process: /proc may hide it
            return False
        return _start_time(self.pid) != self.started

    def to_bytes(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode()


def parse_record(version: FileVersion | None, uri: str) -> LeaseRecord | None:
    """Parse the content of a lease's file; None if there is no file.

    Raises:
        OSError: The file holds something else.
    """
    if version is None:
        return None
    try:
        return LeaseRecord(**json.loads(version.data))
    except (TypeError, ValueError):
        raise OSError(
            f"{uri} is not as bcl_ray wrote it: delete it, when no driver of the folder is alive"
        ) from None


def new_record(before: LeaseRecord | None) -> LeaseRecord:
    """A record of this process, to follow that of another holder."""
    started = _start_time(os.getpid())
    return LeaseRecord(
        number=1 if before is None else before.number + 1,
        token=secrets.token_hex(16),
        beats=0,
        seconds=LEASE_SECONDS,
        released=False,
        host=socket.gethostname(),
        pid=os.getpid(),
        job=cluster_tags().get("job", ""),
        since=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        machine=_machine() if started else "",
        started=started,
    )


def _machine() -> str:
    """The boot and the process namespace of this process; empty if this is not Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """When a process of this machine started, in ticks; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    is_ended = fields[0] in "ZX"  # zombie or dead: only its parent has not noticed
    return "" if is_ended else fields[19]
