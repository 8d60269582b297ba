"""What is in a folder, and whether a file exists."""

from collections.abc import Iterator
from typing import Any

from pyarrow import fs

from bcl_ray.storage import s3
from bcl_ray.storage.files.errors import explain_errors, with_retries
from bcl_ray.storage.files.filesystems import with_filesystem
from bcl_ray.storage.paths import file_in


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

    Files and folders whose name starts with a dot are left out. In memory is a page of 1,000 names
    in S3; elsewhere the entries of one folder and of those above it.

    Args:
        uri: The folder.
        after: A path; only paths that come after it in the order are returned.
    """
    if not s3.is_s3(uri):
        yield from _walk(uri, (), after)
        return
    keys = s3.list_keys(s3.parse_uri(uri), lambda attempt: with_retries(attempt, uri), after)
    for key in keys:
        if not any(part.startswith(".") for part in key.split("/")):
            yield key


def _walk(uri: str, above: tuple[str, ...], after: str) -> Iterator[str]:
    folder = file_in(uri, "/".join(above)) if above else uri

    def path(info: Any) -> str:
        """Path that puts a folder where its files belong in the order of whole paths."""
        is_folder = info.type == fs.FileType.Directory
        return "/".join((*above, info.base_name)) + ("/" if is_folder else "")

    entries = [(path(info), info) for info in _infos(folder) if info.base_name[:1] != "."]
    for name, info in sorted(entries, key=lambda entry: entry[0].encode()):
        if name.encode() <= after.encode() and not (name[-1] == "/" and after.startswith(name)):
            continue
        if info.type == fs.FileType.Directory:
            yield from _walk(uri, (*above, info.base_name), after)
        elif info.is_file:
            yield name


def _info(uri: str) -> Any:
    return with_filesystem(lambda filesystem, path: filesystem.get_file_info(path), uri)


def _infos(uri: str) -> list[Any]:
    def read(filesystem: Any, path: str) -> list[Any]:
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(infos, key=lambda info: str(info.path))

    return with_filesystem(read, uri)
