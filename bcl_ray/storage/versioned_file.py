"""A small file that is replaced only if it is still the version that its writer has read.

This is compare-and-swap on a path or URI. No operation retries: callers do. If
`VersionedFile.replaces_atomically` is false, two writers at the same moment may both succeed: a
writer should read the file back after it has written.
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
from bcl_ray.storage.file_version import ChangedError, FileVersion

LOCK_SECONDS = 10.0  # time limit for the lock, which writers need for moments only
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # filesystems without flock


class VersionedFile(Protocol):
    """A file that is read and replaced as a whole."""

    def read(self) -> FileVersion | None:
        """Read the file; None if it does not exist."""

    def replace(self, data: bytes, old: FileVersion | None) -> FileVersion:
        """Write the file if it is still the version `old`; None stands for no file.

        The call may be repeated, if no other writer writes the same data.

        Raises:
            ChangedError: The file is another version.
        """

    def replaces_atomically(self, own: FileVersion) -> bool:
        """Whether, of two writers at the same moment, only one can succeed.

        Args:
            own: The version that this process wrote last; S3 writes it again to find out.
        """

    def remove(self, own: FileVersion) -> None:
        """Delete the file if it is still the version that this process wrote last."""


def versioned_file(uri: str) -> VersionedFile:
    """The file at a path or URI."""
    if s3.is_s3(uri):
        return _S3Object(uri)
    filesystem, path = files.resolve(uri)
    return _LocalFile(Path(path)) if isinstance(filesystem, fs.LocalFileSystem) else _OtherFile(uri)


class _RemoteFile(VersionedFile):
    """A file without a lock: `remove` compares it, and then deletes it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def remove(self, own: FileVersion) -> None:
        if self.read() == own:
            files.delete(self._uri)


class _S3Object(_RemoteFile):
    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._location = s3.parse_uri(uri)

    def read(self) -> FileVersion | None:
        return s3.read_version(self._location)

    def replace(self, data: bytes, old: FileVersion | None) -> FileVersion:
        return s3.replace_version(self._location, data, old)

    def replaces_atomically(self, own: FileVersion) -> bool:
        return s3.replaces_atomically(self._location, own)


class _LocalFile:
    """A file on a local disk, or one that several machines mount; writers take a lock by flock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f".{path.name}.lock")
        self._has_locks = True  # until the filesystem answers that it has none

    def read(self) -> FileVersion | None:
        try:
            return FileVersion(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def replace(self, data: bytes, old: FileVersion | None) -> FileVersion:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = FileVersion(data)
        with self._locked():
            if self.read() not in (old, new):
                raise ChangedError
            partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
            partial.write_bytes(data)
            partial.replace(self._path)
        return new

    def replaces_atomically(self, own: FileVersion) -> bool:
        del own
        return self._has_locks

    def remove(self, own: FileVersion) -> None:
        with self._locked():
            if self.read() == own:
                self._path.unlink()
                self._lock.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            with self._lock.open("w") as lock:
                handle = lock.fileno()
                if not self._has_locks or (self._try_lock(handle) and self._is_current(handle)):
                    yield
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self._lock} has been locked for {LOCK_SECONDS:g} s, by a process that "
                    "stands still: end it"
                )
            time.sleep(0.05)

    def _try_lock(self, handle: int) -> bool:
        """Lock an open file; also true where the filesystem has no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._has_locks = False
        return True

    def _is_current(self, handle: int) -> bool:
        """Whether an open lock file still has its name; `remove` deletes it."""
        try:
            return os.path.samestat(os.fstat(handle), self._lock.stat())
        except FileNotFoundError:
            return False


class _OtherFile(_RemoteFile):
    """A file in a store for which we know no conditional writes: gs://, hdfs://."""

    def read(self) -> FileVersion | None:
        try:
            return FileVersion(files.read_bytes(self._uri))
        except FileNotFoundError:
            return None

    def replace(self, data: bytes, old: FileVersion | None) -> FileVersion:
        new = FileVersion(data)
        if self.read() not in (old, new):
            raise ChangedError
        files.write_bytes(self._uri, data)
        return new

    def replaces_atomically(self, own: FileVersion) -> bool:
        del own
        return False
