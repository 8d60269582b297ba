"""Files on a local disk that appear whole."""

import functools
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from bcl_ray.storage.files.errors import with_retries
from bcl_ray.storage.s3.clients import Guard

BUFFER_BYTES = 1 << 16


@contextmanager
def open_local_write(final: Path, uri: str, *, exclusive: bool = False) -> Iterator[Any]:
    """A binary sink whose file appears, complete and durable, when the block ends without error.

    Folders above it are created.

    Args:
        final: The file.
        uri: Its path or URI, for messages.
        exclusive: Raise FileExistsError if the file exists, rather than replace it.
    """
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")

    def publish() -> None:
        if exclusive:
            os.link(partial, final)
        else:
            partial.replace(final)
        _sync_folder(final.parent)

    with_retries(lambda: _make_folder(final.parent), uri)
    try:
        with with_retries(lambda: partial.open("xb", buffering=0), uri) as file:
            buffered = io.BufferedWriter(_RetryingSink(file, uri), BUFFER_BYTES)
            yield buffered
            buffered.flush()
            with_retries(lambda: os.fsync(file.fileno()), uri)
        with_retries(publish, uri)
    finally:
        partial.unlink(missing_ok=True)


class AtomicFileSystem(fs.LocalFileSystem):
    """A local filesystem whose files appear whole, and that waits while the disk is full.

    The guard is called before each change, and raises to forbid it.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    @contextmanager
    def open_output_stream(self, path: str, *_: Any, **__: Any) -> Iterator[Any]:
        """Open a file for writing; it appears when the block ends."""
        with open_local_write(Path(path), path) as sink:
            yield sink
            self._guard()  # the change is the rename at the end

    def delete_dir(self, path: str) -> None:
        """Delete a folder and all in it."""
        self._guard()
        super().delete_dir(path)

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._guard()
        super().delete_file(path)

    def __reduce__(self) -> Any:
        return AtomicFileSystem, (self._guard,)


class _RetryingSink(io.RawIOBase):
    """Writes all of the data, and waits while the disk is full."""

    def __init__(self, file: io.FileIO, uri: str) -> None:
        self._file, self._uri = file, uri

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        rest = view
        while rest:
            rest = rest[with_retries(functools.partial(self._file.write, rest), self._uri) :]
        return len(view)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{folder} is a file, not a folder") from None


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power failure: names are stored in the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
