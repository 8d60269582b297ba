"""Reading, writing and deleting whole files."""

import contextlib
import errno
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

from bcl_ray.storage import s3
from bcl_ray.storage.files import filesystems
from bcl_ray.storage.files.errors import explain_errors, with_retries
from bcl_ray.storage.files.filesystems import with_filesystem
from bcl_ray.storage.files.listing import exists
from bcl_ray.storage.files.local import open_local_write
from bcl_ray.storage.paths import file_in, is_local, local

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_bytes(uri: str, size: int | None = None) -> bytes:
    """Read a file; all of it is of one version, even while the file is being replaced.

    Args:
        uri: The file.
        size: Read this many bytes at most; None for all of them.
    """
    if s3.is_s3(uri):
        # pyarrow would ask for the object's size, then for the bytes of perhaps another version.
        return with_retries(lambda: s3.read_object(s3.parse_uri(uri), size), uri)

    def read(filesystem: Any, path: str) -> bytes:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read(size))

    return with_filesystem(read, uri)


class NoFileError(OSError):
    """What a name leads to is no file; the text says what it is."""


def read_listed(folder: str, path: str, size: int | None = None) -> bytes:
    """Read a file that `walk` has found in a folder, or that a list names; `size` as above.

    Raises:
        FileNotFoundError: There is nothing of this name.
        NoFileError: There is no file: reading a pipe or a device might never end.
        OSError: It cannot be read.
    """
    uri = file_in(folder, path)
    if is_local(folder):
        _check_regular(Path(local(uri)))
    return read_bytes(uri, size)


def _check_regular(path: Path) -> None:
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise NoFileError("it is a link that leads nowhere") from None
        raise FileNotFoundError(f"{path} does not exist: check its spelling") from None
    except ValueError:
        raise NoFileError("its name has a NUL character: no file can be called so") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise NoFileError(f"no file can be read there ({error.strerror})") from None
        return  # what else is wrong, reading tells
    if kind != stat.S_IFREG:
        raise NoFileError(f"it is {_KINDS.get(kind, 'something else')}, not a file")


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write a whole file, and the folders above it; readers see all of it or the old file."""
    with open_write(uri) as sink:
        sink.write(data)


def copy(source: str, target: str) -> None:
    """Copy a file; readers see the whole copy or the old file.

    Within an object store the server copies. Elsewhere the whole file is in memory meanwhile.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if s3.is_same_server(source, target):
        original, location = s3.parse_uri(source), s3.parse_uri(target)
        size = with_retries(lambda: s3.object_size(original), source)
        s3.copy_object(original, size, location, partial(with_retries, uri=target))
    else:
        write_bytes(target, read_bytes(source))


def create_bytes(uri: str, data: bytes) -> None:
    """Write a whole file like `write_bytes`, unless it exists.

    Of several writers exactly one succeeds on a local disk, AWS S3, Ceph and other stores with
    atomic conditional writes. Elsewhere (OpenStack Swift, gs://) writers at the same moment may all
    succeed, and the last one's bytes stay.

    Raises:
        FileExistsError: The file exists.
    """
    if s3.is_s3(uri):
        s3.create_object(s3.parse_uri(uri), data, partial(with_retries, uri=uri))
        return
    filesystem, path = filesystems.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with open_local_write(Path(path), uri, exclusive=True) as sink:
            sink.write(data)
    elif exists(uri):
        raise FileExistsError(f"{uri} exists already")
    else:
        write_bytes(uri, data)


@contextmanager
def open_write(uri: str) -> Iterator[Any]:
    """A binary sink whose file appears, complete and durable, when the block ends without error.

    After a block that fails, the old file or none is there; on gs:// and hdfs:// it may be a part
    of the new one.
    """
    if s3.is_s3(uri):
        with s3.open_upload(s3.parse_uri(uri), partial(with_retries, uri=uri)) as sink:
            yield sink
        return
    filesystem, path = filesystems.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with open_local_write(Path(path), uri) as sink:
            yield sink
        return
    with explain_errors(uri):
        stream = filesystem.open_output_stream(path)
    with _ExplainingSink(stream, uri) as sink:
        yield sink


class _ExplainingSink(io.RawIOBase):
    """Explains errors of a stream that is written to; those of other files pass its block."""

    def __init__(self, stream: Any, uri: str) -> None:
        self._stream, self._uri = stream, uri

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._stream.tell())

    def write(self, data: Any) -> int:
        with explain_errors(self._uri):
            self._stream.write(data)
        return memoryview(data).nbytes

    def close(self) -> None:
        if not self.closed:
            super().close()
            with explain_errors(self._uri):
                self._stream.close()


def delete(uri: str) -> None:
    """Delete a file.

    Raises:
        FileNotFoundError: There is none.
    """
    attempts = 0

    def remove(filesystem: Any, path: str) -> None:
        nonlocal attempts
        attempts += 1
        try:
            filesystem.delete_file(path)
        except FileNotFoundError:
            if attempts == 1:  # later, an attempt whose answer was lost may have deleted it
                raise

    with_filesystem(remove, uri)


def delete_folder(uri: str) -> None:
    """Delete a folder and all in it, if it exists."""

    def remove(filesystem: Any, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)

    with_filesystem(remove, uri)
