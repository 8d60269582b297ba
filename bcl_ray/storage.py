"""Files anywhere: a local path or any URI that pyarrow opens, with errors in plain words.

Every function raises FileNotFoundError, PermissionError or another OSError whose text names
the URI and what to do.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a path or URI, and the path within it.

    Raises:
        ValueError: a scheme that pyarrow does not know, or a malformed URI.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    with plain_errors(uri):
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"'{uri}' is not a URI that pyarrow opens ({_one_line(error)}): use a local path, "
                "file://, s3://, gs:// or hdfs://"
            ) from None
    return filesystem, path


def join(uri: str, *parts: str) -> str:
    """The URI of a file below a folder; options after '?' stay at the end."""
    base, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([base.rstrip("/") or base, *parts]) + question + options


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def check_file(uri: str) -> None:
    """Make sure that a file is there, without reading it.

    Raises:
        FileNotFoundError: nothing is there.
        IsADirectoryError: it is a folder.
    """
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.NotFound:
            raise FileNotFoundError
    if kind == fs.FileType.Directory:
        raise IsADirectoryError(f"{uri} is a folder, not a file: name a file in it")


def list_files(uri: str) -> dict[str, int]:
    """Name and bytes of each file directly in a folder, by name; none where there is no folder."""
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {
        info.base_name: info.size for info in sorted(infos, key=lambda i: i.path) if info.is_file
    }


def read_bytes(uri: str) -> bytes:
    """A whole file."""
    filesystem, path = resolve(uri)
    with plain_errors(uri), filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file, with the folders above it; a reader sees all of it or the old one."""
    with open_write(uri) as sink:
        sink.write(data)


def delete(uri: str) -> None:
    """Remove one file."""
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        filesystem.delete_file(path)


@contextmanager
def open_write(uri: str) -> Iterator[Any]:
    """A binary sink whose file appears, complete and durable, when the block ends without error.

    Object stores keep this promise but for one case: a block that fails may leave a part.
    """
    filesystem, path = resolve(uri)
    with plain_errors(uri):
        if not isinstance(filesystem, fs.LocalFileSystem):
            with filesystem.open_output_stream(path) as sink:
                yield sink
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        try:
            with partial.open("xb") as sink:
                yield sink
                sink.flush()
                os.fsync(sink.fileno())
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut: the new name lives in the folder, not in the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn a filesystem's error into one line that names the URI and what to do."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} does not exist: check its spelling") from None
    except OSError as error:
        text = _one_line(error)
        denied = isinstance(error, PermissionError) or "access denied" in text.lower().replace(
            "_", " "
        )
        if denied:
            raise PermissionError(
                f"access to {uri} is denied: check its owner and mode, or the credentials and the "
                f"bucket's policy ({text})"
            ) from error
        raise OSError(f"{uri}: {text}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
