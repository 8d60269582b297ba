"""The listing of the files to label, which goes on while the first of them are labelled.

The paths are kept in list files of the output folder, one per part of the result. A driver that was
killed goes on after the last full list. What was listed stays as it is: a file that has come since,
and whose path lies before the last one listed, is not labelled; a file that has gone has a row with
that reason. When the listing is complete, no new file is looked for.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files


@dataclass(frozen=True)
class ListFiles:
    """The list files of a folder's paths.

    Args:
        uri: Folder or URI of the list files.
        per_list: Paths in each list file except the last.
    """

    uri: str
    per_list: int

    def read(self, number: int) -> list[str]:
        """The paths of a list file."""
        data = files.read_bytes(self._file(number))
        return list(pq.read_table(pa.BufferReader(data))["path"].to_pylist())

    def extend(self, images: str, check: Callable[[], None]) -> Iterator[int]:
        """List the files below a folder or prefix, sorted by the bytes of their paths.

        Args:
            images: Folder or prefix.
            check: Called before each list file is written; raises to forbid it.

        Yields:
            After each list file the number of paths so far, those of an earlier driver included.

        Raises:
            ValueError: There are no files.
        """
        full, last = self._full_lists()
        paths, total = files.walk(images, last), full * self.per_list
        yield total
        for number in itertools.count(full):
            chunk = list(itertools.islice(paths, self.per_list))
            if not chunk:
                break
            check()
            with files.open_write(self._file(number)) as sink:
                pq.write_table(pa.table({"path": chunk}), sink, compression="zstd")
            total += len(chunk)
            yield total
        if total == 0:
            raise UserError(f"{images} holds no files: name a folder of images, or of shards")

    def _full_lists(self) -> tuple[int, str]:
        """The number of full list files from the first on, and the last path in them."""
        names = files.list_files(self.uri)
        number = next(n for n in range(len(names) + 1) if _list_name(n) not in names)
        while number:
            paths = self.read(number - 1)
            if len(paths) == self.per_list:
                return number, paths[-1]
            # A short list is the last one of a listing whose end was not recorded: it is made
            # again.
            number -= 1
        return 0, ""

    def _file(self, number: int) -> str:
        return files.join(self.uri, _list_name(number))


@dataclass(frozen=True)
class Listed:
    """The number of images that are listed."""

    images: int  # so far
    complete: bool  # whether these are all


class Listing:
    """Runs the listing in a thread, and knows how many images it has found.

    Args:
        counts: Numbers of images so far, in rising order; the last one is of all images. The thread
            iterates over it, until it ends or `close` is called.
    """

    def __init__(self, counts: Iterator[int]) -> None:
        self._listed = Listed(0, complete=False)
        self._error: BaseException | None = None
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._count, args=(counts,), daemon=True)
        self._thread.start()

    def now(self) -> Listed:
        """The images that are listed now.

        Raises:
            Exception: That of the listing.
        """
        return self.wait(0)

    def wait(self, images: int, progress: Callable[[int], None] = lambda _: None) -> Listed:
        """Wait until so many images are listed, or all.

        Args:
            images: Number of images.
            progress: Called with the number of images so far whenever it has changed.

        Raises:
            Exception: That of the listing.
        """
        with self._changed:
            while not (self._listed.complete or self._error or self._listed.images >= images):
                self._changed.wait()
                progress(self._listed.images)
            if self._error is not None:
                raise self._error
            return self._listed

    def close(self) -> None:
        """End the listing after the list that is being made."""
        self._closed = True
        self._thread.join()

    def _count(self, counts: Iterator[int]) -> None:
        try:
            for images in counts:
                self._update(Listed(images, complete=False))
                if self._closed:
                    return
            self._update(Listed(self._listed.images, complete=True))
        except BaseException as error:  # the driver raises it
            self._update(self._listed, error)

    def _update(self, listed: Listed, error: BaseException | None = None) -> None:
        with self._changed:
            self._listed, self._error = listed, error
            self._changed.notify_all()


def _list_name(number: int) -> str:
    return f"{number:06d}.parquet"
