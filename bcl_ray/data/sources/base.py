"""The types of a source, which has class names and splits, and the text of its files.

Axes in this package: N rows of a split, K classes.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

Rows = NDArray[np.int64]
Content = bytes | OSError  # a file that cannot be an image is a fault of its row, and stops nothing


@dataclass(frozen=True)
class SourceSplit:
    """One split, with its rows in the source's order."""

    labels: Rows
    """Class of each row, (N,); a label outside 0..K-1 is a fault of its row."""
    read: Callable[[Rows], Iterable[Content]]
    """The images of rows, which are given in rising order; iterating reads their encoded bytes.

    The iterable is pickled, and iterated in another process, where several of them shard.
    """
    where: Callable[[int], str]
    """Describes a row in error messages, for example by the path of its file."""
    already_shuffled: bool = False
    """Whether the rows of a class are in random order, so that the first n are a random sample."""
    ids: Rows | None = None
    """Unique number of each row, (N,); None to use the row's index."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """Faults by row that are found without reading the images."""
    random_access: bool = False
    """Whether `read` takes rows in any order, at no other cost than their own bytes."""
    least_rows: int = 1
    """Rows to read at a time at least: fewer cost as much, as they lie in one piece of a file."""


@dataclass(frozen=True)
class Source:
    """A source of images: class names, in the order of labels, and splits by name."""

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, SourceSplit]
    locations: tuple[str, ...] = ()
    """Folders that are read while images are, to which every node of a cluster needs access."""
    notes: tuple[str, ...] = ()
    """What a person should know: what was left out, and how the content was understood."""


@dataclass(frozen=True)
class SourceRequest:
    """The options of `bcl-ray shard` that describe a source."""

    name: str
    """Kind of source, a name in SOURCES."""
    path: str | None = None
    """Folder, file or URI of the images."""
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files or folders of each split, by the split's name."""
    classes: str | None = None
    """Text file with the name of class k in line k + 1."""
    image_column: str = "image"
    """Parquet column of encoded images: binary, or a struct with a field 'bytes'."""
    label_column: str = "label"
    """Parquet column of integer class indices."""
    id_column: str | None = None
    """Parquet column of unique integers; None to use row numbers as ids."""

    @property
    def required_path(self) -> str:
        """The path.

        Raises:
            ValueError: No path was given.
        """
        if self.path is None:
            raise UserError(
                f"source '{self.name}' needs --from: the folder or URI that holds the images"
            )
        return self.path


def read_text(uri: str) -> str:
    """The content of a UTF-8 file, without byte order marks.

    Raises:
        ValueError: The file is not UTF-8 text.
        OSError: The file cannot be read.
    """
    content = files.read_bytes(uri)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{uri} is not UTF-8 text (byte {error.start}, in line {line}): save it as UTF-8"
        ) from None
    # A file that was put together of others has marks at the beginnings of lines, too.
    return re.sub("^\ufeff+", "", text, flags=re.MULTILINE)


def lines_of(text: str) -> list[str]:
    """Lines, which end as on Linux, Windows or old Macs; the last one may end or not."""
    return re.split(r"\r\n|\r|\n", re.sub(r"(\r\n|\r|\n)\Z", "", text))


def shorten(items: Iterable[str], most: int = 5) -> str:
    """The first few items and the number of the others, for messages."""
    texts = list(items)
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
