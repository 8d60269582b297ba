"""A small file anywhere that is written only over the version that its writer has read.

Each attempt is one: callers try again. `compares` says whether two writers at once exclude each
other; where they do not, a file is as good as read-after-write, and is read back by its writer.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pyarrow import fs

from bcl_ray.storage import files, s3
from bcl_ray.storage.s3 import ChangedError, Version

LOCK_SECONDS = 10.0  # it is held for moments
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

__all__ = ["ChangedError", "File", "Version", "file_at"]


class File(Protocol):
    """A file that is read and replaced as a whole."""

    def read(self) -> Version | None:
        """What it holds; None where there is none."""

    def replace(self, data: bytes, old: Version | None) -> Version:
        """Write it, if it is still `old`; the same, unique data may be offered again.

        Raises:
            ChangedError: it is another version.
        """

    def compares(self, own: Version) -> bool:
        """Whether `replace` is atomic; `own` is what this process wrote last."""

    def remove(self, own: Version) -> None:
        """Remove it, if it is still what this process wrote last."""


def file_at(uri: str) -> File:
    """The file of a path or URI."""
    if s3.is_s3(uri):
        return _Object(uri)
    filesystem, path = files.resolve(uri)
    return _Local(Path(path)) if isinstance(filesystem, fs.LocalFileSystem) else _Plain(uri)


class _Object:
    """In S3."""

    def __init__(self, uri: str) -> None:
        self._uri, self._location = uri, s3.parse_uri(uri)

    def read(self) -> Version | None:
        return s3.read_version(self._location)

    def replace(self, data: bytes, old: Version | None) -> Version:
        return s3.replace_version(self._location, data, old)

    def compares(self, own: Version) -> bool:
        return s3.compares(self._location, own)

    def remove(self, own: Version) -> None:
        if self.read() == own:
            files.delete(self._uri)


class _Local:
    """On a disk, or on one that several machines mount; writers exclude each other by flock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f".{path.name}.lock")
        self._locks = True

    def read(self) -> Version | None:
        try:
            return Version(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def replace(self, data: bytes, old: Version | None) -> Version:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = Version(data)
        with self._locked():
            if self.read() not in (old, new):
                raise ChangedError
            partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
            partial.write_bytes(data)
            partial.replace(self._path)
        return new

    def compares(self, own: Version) -> bool:
        del own
        return self._locks

    def remove(self, own: Version) -> None:
        with self._locked():
            if self.read() == own:
                self._path.unlink()
                self._lock.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            with self._lock.open("w") as lock:
                if not self._locks or (self._take(lock.fileno()) and self._is_there(lock.fileno())):
                    yield
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self._lock} has been locked for {LOCK_SECONDS:g} s, by a process that "
                    "stands still: end it"
                )
            time.sleep(0.05)

    def _is_there(self, handle: int) -> bool:
        """Whether the lock is still the file of that name, which `remove` takes away."""
        try:
            return os.path.samestat(os.fstat(handle), self._lock.stat())
        except FileNotFoundError:
            return False

    def _take(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._locks = False
        return True


class _Plain:
    """Elsewhere: gs://, hdfs://."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def read(self) -> Version | None:
        try:
            return Version(files.read_bytes(self._uri))
        except FileNotFoundError:
            return None

    def replace(self, data: bytes, old: Version | None) -> Version:
        new = Version(data)
        if self.read() not in (old, new):
            raise ChangedError
        files.write_bytes(self._uri, data)
        return new

    def compares(self, own: Version) -> bool:
        del own
        return False

    def remove(self, own: Version) -> None:
        if self.read() == own:
            files.delete(self._uri)
