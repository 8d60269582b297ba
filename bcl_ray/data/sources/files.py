"""Images in files of their own, and the source that names them in list files."""

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

from bcl_ray.data.sources.base import (
    Content,
    Rows,
    Source,
    SourceRequest,
    SourceSplit,
    lines_of,
    names_of_classes,
    read_ahead,
    read_text,
)
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

# Errors of a name that can be no image, as opposed to those of a disk or of its owner.
_NO_IMAGE = {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def open_list(request: SourceRequest) -> Source:
    """Open images that are named in list files."""
    return list_source(request.required_path, request.splits, classes=request.classes)


def list_source(
    path: str, lists: Mapping[str, Sequence[str]], *, classes: str | None = None
) -> Source:
    """Images that are named in list files, some for each split.

    Args:
        path: Folder or URI to which the paths in the lists are relative.
        lists: List files of each split, with a line `<path> <label>` per image.
        classes: File of class names; see `names_of_classes`.

    Raises:
        ValueError: There is no list of training images, or a file is invalid.
        OSError: The folder or a file does not exist, or cannot be read.
    """
    if "train" not in lists:
        raise UserError(
            "source 'list' needs --split train=LIST, and a --split NAME=LIST per evaluation split"
        )
    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist: it must be the folder that lists refer to")
    parsed = {split: _parse_lists(path, uris) for split, uris in lists.items()}
    class_names = names_of_classes(classes, parsed["train"][1])
    splits = {split: file_split(path, *content) for split, content in parsed.items()}
    return Source("list", class_names, splits, (path,))


def _parse_lists(root: str, uris: Sequence[str]) -> tuple[list[str], Rows, dict[int, str]]:
    names: list[str] = []
    labels: list[Rows] = []
    faults: dict[int, str] = {}
    for uri in uris:
        some, numbers, wrong = parse_list(read_text(uri), origin=uri)
        if len(wrong) == len(some):
            raise UserError(f"{uri} is no list of images: {wrong[0]}")
        for row, name in enumerate(some):
            if row not in wrong and (below := _below(root, name)) != name:
                some[row] = below or name
                if below is None:
                    wrong[row] = f"an absolute path that is not below {root}, which --from names"
        faults |= {len(names) + row: fault for row, fault in wrong.items()}
        names += some
        labels.append(numbers)
    return names, np.concatenate(labels), faults


def _below(root: str, name: str) -> str | None:
    """A path relative to a root; None if it is absolute, and not below the root."""
    if not name.startswith("/") and "://" not in name:
        return name
    prefix = paths.absolute(root).rstrip("/") + "/"
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def parse_list(text: str, *, origin: str) -> tuple[list[str], Rows, dict[int, str]]:
    """Parse a list file: a path, white space and a label in each line.

    A path may contain spaces; the label follows the last one.

    Args:
        origin: Name of the file in error messages.

    Returns:
        Paths; labels, (N,); and faults by row. A line that cannot be parsed has label -1.
    """
    names, faults = [], {}
    lines = lines_of(text)
    labels = np.full(len(lines), -1, dtype=np.int64)
    for row, line in enumerate(lines):
        match = re.fullmatch(r"\s*(\S.*?)\s+(-?[0-9]{1,9})\s*", line)
        if match is None:
            faults[row] = f"line {row + 1} of {origin} is not '<path> <label>': {line[:80]!r}"
        else:
            labels[row] = int(match[2])
        names.append(match[1] if match else f"{origin} line {row + 1}")
    return names, labels, faults


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder; iterating reads them."""

    root: str
    """Absolute path or URI of the folder."""
    names: Sequence[str]
    """Paths below it."""

    def __iter__(self) -> Iterator[Content]:
        filesystem, base = files.resolve(self.root)
        return read_ahead(lambda name: self._read(filesystem, base, name), self.names)

    def _read(self, filesystem: Any, base: str, name: str) -> Content:
        if "\0" in name:
            return OSError("its name has a NUL character: no file can be called so")
        path = f"{base.rstrip('/')}/{name}"
        try:
            if isinstance(filesystem, fs.LocalFileSystem):
                _check_regular(Path(path))
            with (
                files.explain_errors(files.join(self.root, name)),
                filesystem.open_input_stream(path) as stream,
            ):
                return bytes(stream.read())
        except FileNotFoundError as error:
            return error
        except OSError as error:
            if error.errno in _NO_IMAGE:
                return OSError(f"no file can be read there ({error.strerror})")
            raise


def _check_regular(path: Path) -> None:
    """Refuse folders, and pipes and devices, of which a read may never end.

    Raises:
        OSError: It is no regular file (EINVAL), or it cannot be looked at.
    """
    if not path.is_file() and path.stat():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise OSError(errno.EINVAL, f"it is {kind}")


def file_split(
    root: str, names: Sequence[str], labels: Rows, faults: Mapping[int, str]
) -> SourceSplit:
    """A split whose rows are files below a folder, by their names, (N,)."""
    folder = paths.absolute(root)
    return SourceSplit(
        labels,
        lambda rows: ImageFiles(folder, [names[row] for row in rows.tolist()]),
        where=lambda row: names[row],
        random_order=False,
        faults=faults,
        random_access=True,
    )
