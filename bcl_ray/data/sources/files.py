"""Sources whose images are files: a folder per class, or a root and list files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bcl_ray.data.sources.base import (
    Content,
    Rows,
    Source,
    SourceRequest,
    SourceSplit,
    names_of_classes,
    read_ahead,
    read_text,
)
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths


def open_folder(request: SourceRequest) -> Source:
    """Open a folder per split that holds a folder per class."""
    return folder(request.required_path)


def open_list(request: SourceRequest) -> Source:
    """Open images that are named in list files."""
    return list_source(request.required_path, request.splits or {}, classes=request.classes)


def folder(path: str) -> Source:
    """Images in files `<path>/<split>/<class>/<file>`, of the splits train, val and test.

    Every file counts as an image, unless its name or a folder's name starts with a dot.

    Raises:
        ValueError: There are no training images, or neither validation nor test images.
        OSError: The folder cannot be read.
    """
    by_split, class_names = _list_folder(path)
    if not by_split["train"] or not (by_split["val"] or by_split["test"]):
        raise UserError(
            f"{path} must hold train/<class>/<image> and test/<class>/<image> (or val/): split it "
            "into such folders, or name the images of each split in list files (source 'list')"
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, images in by_split.items():
        if images:
            labels = np.array([label_of.get(parts[1], -1) for parts in images], dtype=np.int64)
            faults = {
                row: f"'{images[row][1]}' is not a class folder of train/"
                for row in np.flatnonzero(labels < 0).tolist()
            }
            splits[split] = _file_split(path, ["/".join(parts) for parts in images], labels, faults)
    return Source("folder", tuple(class_names), splits, (path,))


def _list_folder(path: str) -> tuple[dict[str, list[list[str]]], list[str]]:
    """The paths of each split's images, cut at slashes; and the class names. Both are sorted."""
    by_split: dict[str, list[list[str]]] = {"train": [], "val": [], "test": []}
    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist: check its spelling")
    for name in files.walk(path):
        parts = name.split("/")
        if len(parts) > 1 and parts[0] in by_split:
            by_split[parts[0]].append(parts)
    classes = {parts[1] for parts in by_split["train"] if len(parts) > 2}
    # An empty folder is a class too: one without images, which is then refused.
    classes |= {name for name in files.list_folders(files.join(path, "train")) if name[:1] != "."}
    return {split: sorted(images) for split, images in by_split.items()}, sorted(classes - {""})


def list_source(path: str, lists: Mapping[str, str], *, classes: str | None = None) -> Source:
    """Images that are named in list files, one for each split.

    Args:
        path: Folder or URI to which the paths in the lists are relative.
        lists: List file of each split, with a line `<path> <label>` per image.
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
    parsed = {split: parse_list(read_text(uri), origin=uri) for split, uri in lists.items()}
    class_names = names_of_classes(classes, parsed["train"][1])
    splits = {split: _file_split(path, *content) for split, content in parsed.items()}
    return Source("list", class_names, splits, (path,))


def parse_list(text: str, *, origin: str) -> tuple[list[str], Rows, dict[int, str]]:
    """Parse a list file: a path, white space and a label in each line.

    A path may contain spaces; the label follows the last one.

    Args:
        origin: Name of the file in error messages.

    Returns:
        Paths; labels, (N,); and faults by row. A line that cannot be parsed has label -1.
    """
    names, faults = [], {}
    lines = text.removesuffix("\n").split("\n")
    labels = np.full(len(lines), -1, dtype=np.int64)
    for row, line in enumerate(lines):
        match = re.fullmatch(r"\s*(\S.*?)\s+(-?\d{1,9})\s*", line)
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
        def read(name: str) -> Content:
            try:
                return files.read_listed(self.root, name)
            except (FileNotFoundError, files.NoFileError) as error:
                return error

        return read_ahead(read, self.names)


def _file_split(
    root: str, names: Sequence[str], labels: Rows, faults: Mapping[int, str]
) -> SourceSplit:
    folder = paths.absolute(root)
    return SourceSplit(
        labels,
        lambda rows: ImageFiles(folder, [names[row] for row in rows.tolist()]),
        where=lambda row: names[row],
        random_order=False,
        faults=faults,
        random_access=True,
    )
