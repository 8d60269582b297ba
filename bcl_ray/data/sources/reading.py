"""Images that are read while they are iterated over, ahead of the consumer: files, and parts."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from bcl_ray.data.sources.base import Content, Rows, SourceSplit
from bcl_ray.storage import files, paths

Item = TypeVar("Item")
Result = TypeVar("Result")

READ_THREADS, READ_AHEAD = 16, 32  # images that are read at a time, and read before they are used


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


def file_split(
    root: str, names: Sequence[str], labels: Rows, faults: Mapping[int, str]
) -> SourceSplit:
    """A split whose rows are files below a folder, by their names, (N,)."""
    folder = paths.absolute(root)
    return SourceSplit(
        labels,
        lambda rows: ImageFiles(folder, [names[row] for row in rows.tolist()]),
        where=lambda row: names[row],
        faults=faults,
        random_access=True,
    )
