"""The types of a source: class names, and splits that stream encoded bytes.

Axes in this package: N rows of a split, K classes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

Rows = NDArray[np.int64]
Content = bytes | OSError  # a file that cannot be an image is a fault of its row, and stops nothing
Item = TypeVar("Item")
Result = TypeVar("Result")

READ_THREADS, READ_AHEAD = 16, 32  # images that are read at a time, and read before they are used


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
    random_order: bool
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


@dataclass(frozen=True)
class SourceRequest:
    """The options of `bcl-ray shard` that describe a source."""

    name: str
    """Kind of source, a name in SOURCES."""
    path: str | None = None
    """Folder, file or URI of the images."""
    splits: Mapping[str, str] | None = None
    """List file or Parquet file of each split, by the split's name."""
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


def names_of_classes(classes: str | None, train_labels: Rows) -> tuple[str, ...]:
    """The lines of a file of class names; without a file, the numbers up to the largest label."""
    if classes is not None:
        return tuple(line.strip() for line in read_text(classes).strip().split("\n"))
    largest = int(train_labels.max(initial=-1))
    if largest >= len(train_labels):
        raise UserError(
            f"label {largest} stands for {largest + 1} classes, and there are only "
            f"{len(train_labels)} training images: some class has none"
        )
    return tuple(str(label) for label in range(largest + 1))


def read_text(uri: str) -> str:
    """The content of a UTF-8 file.

    Raises:
        ValueError: The file is not UTF-8 text.
        OSError: The file cannot be read.
    """
    try:
        return files.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 text (byte {error.start})") from None


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of a function that waits for a store, in order; threads read ahead of the consumer.

    READ_AHEAD limits the memory.
    """
    with ThreadPoolExecutor(READ_THREADS) as threads:
        pending: deque[Any] = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) == READ_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
