"""The types of a source: class names, and splits that stream encoded bytes.

Axes in this package: N rows of a split, K classes.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
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


def names_of_classes(classes: str | None, train_labels: Rows) -> tuple[str, ...]:
    """The lines of a file of class names; without a file, the numbers up to the largest label."""
    if classes is not None:
        names = tuple(line.strip() for line in lines_of(read_text(classes).rstrip()))
        if "" in names:
            raise UserError(
                f"line {names.index('') + 1} of {classes} is empty: it must name class "
                f"{names.index('')}"
            )
        return names
    largest = int(train_labels.max(initial=-1))
    if largest >= len(train_labels):
        raise UserError(
            f"label {largest} stands for {largest + 1} classes, and there are only "
            f"{len(train_labels)} training images: some class has none"
        )
    return tuple(str(label) for label in range(largest + 1))


def numbered(
    classes: Sequence[str], names_file: str | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of classes, and the label of each class as the source calls it.

    Args:
        classes: Classes as the source calls them, in order.
        names_file: File of names in the order of labels, for classes with these names or numbers.
    """
    if names_file is None:
        return tuple(classes), {name: label for label, name in enumerate(classes)}
    names = names_of_classes(names_file, np.zeros(0, np.int64))
    repeated = [name for name in classes if names.count(name) > 1]
    if repeated:
        raise UserError(
            f"{names_file} has several lines {shorten(map(repr, repeated))}, so that the labels of "
            "these classes are not clear: leave one line of each"
        )
    if set(classes) <= set(names):
        return names, {name: label for label, name in enumerate(names)}
    if all(name.isdecimal() for name in classes):
        return names, {str(label): label for label in range(len(names))}
    missing = sorted(set(classes) - set(names))
    raise UserError(f"{names_file} has no line {shorten(map(repr, missing))}, and images have it")


def in_order(classes: Iterable[str]) -> list[str]:
    """Classes in the order of their names; numbers come first, in the order of their values."""
    return sorted(set(classes), key=lambda name: (not name.isdecimal(), _number(name), name))


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def with_unique_names(source: Source) -> Source:
    """A source whose classes are told apart by their names, as results and MLflow need it.

    The label is added to a name that occurs more than once: ImageNet has two classes "crane".
    """
    times = Counter(source.class_names)
    if len(times) == len(source.class_names):
        return source
    names: list[str] = []
    for label, name in enumerate(source.class_names):
        unique = name
        while times[unique] > 1 or (unique != name and (unique in times or unique in names)):
            unique = f"{unique} ({label})"
        names.append(unique)
    repeated = [name for name in times if times[name] > 1]
    note = (
        f"{len(repeated)} class names occur more than once ({shorten(map(repr, repeated))}): their "
        "labels are added to them"
    )
    return replace(source, class_names=tuple(names), notes=(*source.notes, note))


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


@dataclass(frozen=True)
class FileParts:
    """Images that are parts of larger files, in any order; iterating reads them. N images."""

    uris: tuple[str, ...]
    """Absolute paths or URIs of the files."""
    numbers: Rows
    """The file of each image, an index of `uris`, (N,)."""
    starts: Rows
    """First byte of each image in its file, (N,)."""
    sizes: Rows
    """Bytes of each image, (N,)."""

    def __iter__(self) -> Iterator[Content]:
        @lru_cache(maxsize=64)
        def open_file(number: int) -> Any:
            filesystem, path = files.resolve(self.uris[number])
            return filesystem.open_input_file(path)

        def read(place: tuple[int, int, int]) -> Content:
            number, start, size = place
            with files.explain_errors(self.uris[number]):
                return bytes(open_file(number).read_at(size, start))

        columns = (self.numbers, self.starts, self.sizes)
        return read_ahead(read, zip(*(column.tolist() for column in columns), strict=True))
