"""Files anywhere: a local path, s3:// or any other URI that pyarrow opens.

Every function tries again, for minutes, while an object store throttles or does not answer and
while a local disk is full, and says so with a warning (logger bcl_ray.storage). Then, and for
faults that do not pass, it raises FileNotFoundError, PermissionError or another OSError whose
text names the URI and what to do. Settings and credentials of S3: see `storage.s3.location`.
"""

import contextlib
import errno
import functools
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import s3
from bcl_ray.storage.retry import PATIENCE, TransientError, local_patience, persist

Result = TypeVar("Result")
Guard = Callable[[], None]


# Of a file system that other machines serve.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a path or URI, and the path within it.

    S3's tries again by itself for about 100 s. Pickled, it holds no settings and no credentials,
    and takes those of the machine that it comes to.

    Raises:
        ValueError: a scheme that pyarrow does not know, or a malformed URI.
    """
    if s3.is_s3(uri):
        location = s3.parse_uri(uri)
        with explain_errors(uri):
            return s3.filesystem(location), location.path
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    with explain_errors(uri):
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"'{uri}' is not a URI that pyarrow opens ({_one_line(error)}): use a local path, "
                "file://, s3://, gs:// or hdfs://"
            ) from None
    return filesystem, path


def atomic_filesystem(uri: str, guard: Guard) -> tuple[Any, str]:
    """As `resolve`, for a library that writes by itself: a file is there whole, or the old one is.

    Ray Train writes the list of its checkpoints over the one before; half of it would end the run.

    Args:
        uri: of a folder.
        guard: called before each change, and raises to forbid it; on local disks and in S3. It
            is hashable, and goes with the filesystem where that is pickled.
    """
    if s3.is_s3(uri):
        location = s3.parse_uri(uri)
        with explain_errors(uri):
            return s3.filesystem(location, guard=guard), location.path
    filesystem, path = resolve(uri)
    return (
        _AtomicFileSystem(guard) if isinstance(filesystem, fs.LocalFileSystem) else filesystem
    ), path


def with_filesystem(function: Callable[[Any, str], Result], uri: str) -> Result:
    """Call function(filesystem, path) for a URI, and again while faults last that pass.

    For callers that read with pyarrow themselves; all of the reading belongs in the function:

        def read(filesystem, path):
            with filesystem.open_input_file(path) as file:
                return pq.ParquetFile(file).read_row_group(0)

        table = storage.with_filesystem(read, uri)

    Raises:
        FileNotFoundError, PermissionError, OSError: in plain words.
    """

    def attempt() -> Result:
        # Blips pass within the filesystem's own attempts; the rest is for our eyes.
        location = s3.parse_uri(uri) if s3.is_s3(uri) else None
        filesystem, path = (
            (s3.filesystem(location, attempts=s3.QUICK), location.path)
            if location
            else resolve(uri)
        )
        try:
            return function(filesystem, path)
        except Exception as error:
            clearer = s3.precise(error, location) if location else error
            if clearer is error:
                raise
            raise clearer from None

    with explain_errors(uri):
        return _persist(attempt, uri)


def with_retries(attempt: Callable[[], Result], uri: str) -> Result:
    """Call a function that is safe to repeat, and again while faults last that pass.

    Raises:
        FileNotFoundError, PermissionError, OSError: in plain words.
    """
    with explain_errors(uri):
        return _persist(attempt, uri)


def check_usable(uri: str, *actions: str) -> None:
    """Say within 15 s what stands in the way of using a place of S3; other places are passed over.

    Args:
        uri: of a folder.
        actions: those that will be needed, of list, read, write and delete.

    Raises:
        ValueError: what to do about it.
        TransientError: likewise, where it may pass.
    """
    problems = s3.check_access(uri, actions) if s3.is_s3(uri) else []
    if problems:
        passing = all(isinstance(problem, s3.TransientProblem) for problem in problems)
        raise (TransientError if passing else UserError)("; ".join(problems))


def join(uri: str, *parts: str) -> str:
    """The URI of a file below a folder; options after '?' stay at the end."""
    base, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([base.rstrip("/") or base, *parts]) + question + options


def user_cache() -> Path:
    """This user's folder for what outlasts a process: XDG_CACHE_HOME, or ~/.cache.

    Raises:
        OSError: a container's user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        raise OSError(
            f"user {os.getuid()} has no home: set HOME, or XDG_CACHE_HOME, to a folder that it may "
            "write to"
        ) from None


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    return bool(_info(uri).type != fs.FileType.NotFound)


def check_file(uri: str) -> None:
    """Make sure that a file is there, without reading it.

    Raises:
        FileNotFoundError: nothing is there.
        IsADirectoryError: it is a folder.
    """
    kind = _info(uri).type
    if kind == fs.FileType.NotFound:
        with explain_errors(uri):
            raise FileNotFoundError
    if kind == fs.FileType.Directory:
        raise IsADirectoryError(f"{uri} is a folder, not a file: name a file in it")


def list_files(uri: str) -> dict[str, int]:
    """Name and bytes of each file directly in a folder, by name; none where there is no folder."""
    return {info.base_name: info.size for info in _list(uri) if info.is_file}


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; none where there is no folder."""
    return [info.base_name for info in _list(uri) if info.type == fs.FileType.Directory]


def walk(uri: str) -> Iterator[str]:
    """Paths of all files below a folder, as seen from there, in the order of their bytes.

    A file is left out whose name, or one of its folders', starts with a dot. There are held a page
    of 1,000 in S3; elsewhere the entries of a folder, and of those above it.
    """
    if not s3.is_s3(uri):
        yield from _walk(uri, ())
        return

    def persist(attempt: Callable[[], Result]) -> Result:
        with explain_errors(uri):
            return _persist(attempt, uri)

    for key in s3.keys(s3.parse_uri(uri), persist):
        if not any(part.startswith(".") for part in key.split("/")):
            yield key


def file_in(folder: str, path: str) -> str:
    """URI or path of a file that `walk` has found in a folder, whatever characters it has."""
    return join(folder, quote(path) if "://" in folder else path)


def read_bytes(uri: str) -> bytes:
    """A whole file: one version of it, also while it is being replaced."""
    if s3.is_s3(uri):
        # Not by pyarrow, which asks for an object's size, then for the bytes of perhaps another.
        with explain_errors(uri):
            return _persist(lambda: s3.read(s3.parse_uri(uri)), uri)

    def read(filesystem: Any, path: str) -> bytes:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    return with_filesystem(read, uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file, with the folders above it; a reader sees all of it or the old one."""
    with open_write(uri) as sink:
        sink.write(data)


def create_bytes(uri: str, data: bytes) -> None:
    """Write a whole file, as `write_bytes` does, unless there is one.

    Of several writers exactly one succeeds on a local disk, AWS S3, Ceph and other stores with
    atomic conditional writes. Elsewhere (OpenStack Swift, gs://) it is looked up, then written:
    writers within the same moment may all succeed, and the last one's bytes stay.

    Raises:
        FileExistsError: there is one.
    """
    if s3.is_s3(uri):
        with explain_errors(uri):
            s3.create(s3.parse_uri(uri), data, lambda attempt: _persist(attempt, uri))
    elif isinstance(resolve(uri)[0], fs.LocalFileSystem):
        with _local_write(uri, exclusive=True) as sink:
            sink.write(data)
    elif exists(uri):
        raise FileExistsError(f"{uri} exists already")
    else:
        write_bytes(uri, data)


def delete(uri: str) -> None:
    """Remove one file."""
    tried = 0

    def remove(filesystem: Any, path: str) -> None:
        nonlocal tried
        tried += 1
        try:
            filesystem.delete_file(path)
        except FileNotFoundError:
            if tried == 1:  # else an attempt whose answer was lost has removed it
                raise

    with_filesystem(remove, uri)


def delete_folder(uri: str) -> None:
    """Remove a folder and all in it; where there is none, nothing happens."""

    def remove(filesystem: Any, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(path)

    with_filesystem(remove, uri)


@contextmanager
def open_write(uri: str) -> Iterator[Any]:
    """A binary sink whose file appears, complete and durable, when the block ends without error.

    A block that fails leaves the old file, or none; on gs:// and hdfs:// it may leave a part.
    """
    if s3.is_s3(uri):
        with _s3_write(uri) as sink:
            yield sink
        return
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with _local_write(uri) as sink:
            yield sink
        return
    with explain_errors(uri), filesystem.open_output_stream(path) as sink:
        yield sink


@contextmanager
def _s3_write(uri: str) -> Iterator[Any]:
    def plainly(attempt: Callable[[], Any]) -> Any:
        with explain_errors(uri):
            return _persist(attempt, uri)

    upload = s3.Upload(s3.parse_uri(uri), plainly)
    try:
        yield upload
        upload.complete()
    except BaseException:
        with contextlib.suppress(Exception):  # the first error counts
            upload.abort()
        raise


class _AtomicFileSystem(fs.LocalFileSystem):
    """A local disk whose files appear whole, and that waits for room."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    @contextmanager
    def open_output_stream(self, path: str, *_: Any, **__: Any) -> Iterator[Any]:
        with _local_write(path) as sink:
            yield sink
            self._guard()

    def delete_dir(self, path: str) -> None:
        self._guard()
        super().delete_dir(path)

    def delete_file(self, path: str) -> None:
        self._guard()
        super().delete_file(path)

    def __reduce__(self) -> Any:
        return _AtomicFileSystem, (self._guard,)


class _LocalSink(io.RawIOBase):
    """Writes all that it is given, waiting while the disk is full."""

    def __init__(self, file: io.FileIO, uri: str) -> None:
        self._file, self._uri = file, uri

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        rest = view
        with explain_errors(self._uri):
            while rest:
                rest = rest[_persist(functools.partial(self._file.write, rest), self._uri) :]
        return len(view)


@contextmanager
def _local_write(uri: str, *, exclusive: bool = False) -> Iterator[Any]:
    final = Path(resolve(uri)[1])
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")

    def plainly(attempt: Callable[[], Result]) -> Result:
        with explain_errors(uri):
            return _persist(attempt, uri)

    def publish() -> None:
        if exclusive:
            os.link(partial, final)
        else:
            partial.replace(final)
        _sync_folder(final.parent)

    def make_folder() -> None:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"{final.parent} is a file, not a folder") from None

    plainly(make_folder)
    try:
        with plainly(lambda: partial.open("xb", buffering=0)) as file:
            buffered = io.BufferedWriter(_LocalSink(file, uri), 1 << 16)
            yield buffered
            buffered.flush()
            plainly(lambda: os.fsync(file.fileno()))
        plainly(publish)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut: the new name lives in the folder, not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _info(uri: str) -> Any:
    return with_filesystem(lambda filesystem, path: filesystem.get_file_info(path), uri)


def _list(uri: str) -> list[Any]:
    def read(filesystem: Any, path: str) -> list[Any]:
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(found, key=lambda info: str(info.path))

    return with_filesystem(read, uri)


def _walk(uri: str, above: tuple[str, ...]) -> Iterator[str]:
    folder = file_in(uri, "/".join(above)) if above else uri
    entries = [(info.base_name, info.type) for info in _list(folder)]
    # With its '/' a folder comes where its files do in the order of whole paths.
    is_folder = fs.FileType.Directory
    for name, kind in sorted(entries, key=lambda e: (e[0] + "/" * (e[1] == is_folder)).encode()):
        if name.startswith("."):
            continue
        if kind == is_folder:
            yield from _walk(uri, (*above, name))
        elif kind == fs.FileType.File:
            yield "/".join((*above, name))


def _persist(attempt: Callable[[], Result], uri: str) -> Result:
    def patience(error: BaseException) -> float:
        worth = s3.patience(error) if s3.is_s3(uri) else local_patience(error)
        if 0 < worth < PATIENCE:  # access is denied: the credentials may have been renewed since
            s3.forget()
        return worth

    return persist(attempt, uri, patience, s3.brief)


@contextmanager
def explain_errors(uri: str) -> Iterator[None]:
    """Turn a filesystem's error into one line that names the URI and what to do."""
    try:
        yield
    except TransientError:  # it has been made plain
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} does not exist: check its spelling") from None
    except Exception as error:
        if s3.is_s3(uri) and s3.fault_of(error) is not None:
            raise s3.explain(error, uri, s3.parse_uri(uri)) from error
        if not isinstance(error, OSError):
            raise
        raise _plain(error, uri) from error


def _plain(error: OSError, uri: str) -> OSError:
    text = _one_line(error)
    if isinstance(error, FileExistsError):
        return FileExistsError(f"{uri} exists already")
    if isinstance(error, PermissionError) or "access denied" in text.lower().replace("_", " "):
        return PermissionError(
            f"access to {uri} is denied: check its owner and mode, or the credentials and the "
            f"bucket's policy ({text})"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = TransientError(f"{uri}: the disk is full: make room on it ({text})")
        full.errno = error.errno
        return full
    passing = isinstance(error, ConnectionError | TimeoutError) or error.errno in _PASSING
    return (TransientError if passing else OSError)(f"{uri}: {text}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
