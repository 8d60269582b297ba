"""The source whose images are named in list files."""

import re
from collections.abc import Sequence

import numpy as np

from bcl_ray.data.sources.base import Rows, Source, SourceRequest, lines_of, read_text
from bcl_ray.data.sources.class_names import numbers_as_names, read_class_names
from bcl_ray.data.sources.reading import file_split
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths


def open_list(request: SourceRequest) -> Source:
    """Open images that are named in list files, of which each split has some.

    A line of a list is `<path> <label>`, with a path that is relative to the request's.

    Raises:
        ValueError: There is no list of training images, or a file is invalid.
        OSError: The folder or a file does not exist, or cannot be read.
    """
    path, lists, classes = request.required_path, request.splits, request.classes
    if "train" not in lists:
        raise UserError(
            "source 'list' needs --split train=LIST, and a --split NAME=LIST per evaluation split"
        )
    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist: it must be the folder that lists refer to")
    parsed = {split: _parse_lists(path, uris) for split, uris in lists.items()}
    names = numbers_as_names(parsed["train"][1]) if classes is None else read_class_names(classes)
    splits = {split: file_split(path, *content) for split, content in parsed.items()}
    return Source(request.name, names, splits, (path,))


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
    prefix = paths.split_options(paths.absolute(root))[0].rstrip("/") + "/"
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
