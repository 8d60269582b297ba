"""What is in a folder, and whether a file exists."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import s3
from bcl_ray.storage.files.errors import explain_errors, with_retries
from bcl_ray.storage.files.filesystems import with_filesystem
from bcl_ray.storage.paths import file_in, is_local, local


def exists(uri: str) -> bool:
    """Whether a file or folder exists."""
    return bool(_info(uri).type != fs.FileType.NotFound)


def check_file(uri: str) -> None:
    """Check that a file exists, without reading it.

    Raises:
        FileNotFoundError: Nothing is there.
        IsADirectoryError: It is a folder.
    """
    kind = _info(uri).type
    if kind == fs.FileType.NotFound:
        with explain_errors(uri):
            raise FileNotFoundError
    if kind == fs.FileType.Directory:
        raise IsADirectoryError(f"{uri} is a folder, not a file: name a file in it")


def list_files(uri: str) -> dict[str, int]:
    """Name and bytes of each file directly in a folder, by name; empty if there is no folder."""
    return {info.base_name: info.size for info in _infos(uri) if info.is_file}


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; empty if there is no folder."""
    return [info.base_name for info in _infos(uri) if info.type == fs.FileType.Directory]


def walk(uri: str, after: str = "") -> Iterator[str]:
    """Paths of all files below a folder, relative to it, in the order of their bytes.

    Files and folders whose name starts with a dot are left out. What is no folder counts as a file,
    also a link that leads nowhere and a pipe: `read_listed` says what is wrong with it. A link to a
    folder is followed, unless it leads back to a folder above it. In memory is a page of 1,000
    names in S3; elsewhere the entries of one folder and of those above it.

    Args:
        uri: The folder.
        after: A path; only paths that come after it in the order are returned.

    Raises:
        ValueError: A name is not UTF-8.
    """
    if not s3.is_s3(uri):
        yield from _walk(uri, (), after, ())
        return
    for key in s3.list_keys(s3.parse_uri(uri), partial(with_retries, uri=uri), after):
        if not any(part.startswith(".") for part in key.split("/")):
            yield key


def _walk(
    uri: str, above: tuple[str, ...], after: str, real_above: tuple[Path, ...]
) -> Iterator[str]:
    folder = file_in(uri, "/".join(above)) if above else uri
    real = (*real_above, Path(local(folder)).resolve()) if is_local(uri) else ()
    entries = _local_entries(folder, real) if real else _entries(folder)
    # A slash puts a folder where its files belong in the order of whole paths.
    paths = ["/".join((*above, name)) + "/" * is_folder for name, is_folder in entries]
    for path in sorted(paths, key=str.encode):
        if path.encode() <= after.encode() and not (path[-1] == "/" and after.startswith(path)):
            continue
        if path[-1] == "/":
            yield from _walk(uri, tuple(path[:-1].split("/")), after, real)
        else:
            yield path


def _entries(folder: str) -> list[tuple[str, bool]]:
    """Names in a folder that do not start with a dot, and whether they are folders."""
    return [
        (info.base_name, info.type == fs.FileType.Directory)
        for info in _infos(folder)
        if info.base_name[:1] != "."
    ]


def _local_entries(folder: str, real: tuple[Path, ...]) -> list[tuple[str, bool]]:
    """The same on this machine; `real` are the folder and those above it, without links."""

    def read() -> list[os.DirEntry[str]]:
        try:
            with os.scandir(real[-1]) as entries:
                return [entry for entry in entries if entry.name[0] != "."]
        except FileNotFoundError:
            return []

    entries = with_retries(read, folder)
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            name = os.fsencode(entry.name)
            raise UserError(
                f"{folder} holds a name that is not UTF-8, {name!r}: rename it"
            ) from None
    return [(entry.name, _is_new_folder(entry, real)) for entry in entries]


def _is_new_folder(entry: os.DirEntry[str], real: tuple[Path, ...]) -> bool:
    """Whether an entry is a folder, and no link to one of the folders in which it lies."""
    if not entry.is_symlink():
        return entry.is_dir()
    if not Path(entry.path).is_dir():
        return False
    target = Path(entry.path).resolve()
    return not any(folder.is_relative_to(target) for folder in real)


def _info(uri: str) -> Any:
    return with_filesystem(lambda filesystem, path: filesystem.get_file_info(path), uri)


def _infos(uri: str) -> list[Any]:
    def read(filesystem: Any, path: str) -> list[Any]:
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        # A key with an empty part makes a folder without a name, which pyarrow calls as its parent.
        named = [info for info in infos if info.path.rstrip("/") != path.rstrip("/")]
        return sorted(named, key=lambda info: str(info.path))

    return with_filesystem(read, uri)
