"""Staging: checks the rows of a split, and copies their images to a local file.

The file is in the temporary folder (TMPDIR, which must be on a disk, not in memory), and takes as
many bytes as the images. It has no name, so that even after kill -9 nothing is left. Memory holds
a few numbers per row, and the images that are being checked.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.image_check import checker_settings, image_fault
from bcl_ray.data.sources import Content, Rows, SourceSplit
from bcl_ray.machine import container
from bcl_ray.machine.errors import UserError

CHUNK_ROWS, CHUNK_BYTES = 64, 16 << 20  # images checked at a time; two chunks are in memory


class ImageFault(NamedTuple):
    """A row that cannot be used, and why."""

    row: int
    label: int
    where: str
    fault: str


class Staged:
    """Valid rows of a split in the source's order, and the faults of the other rows."""

    def __init__(self, num_rows: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.rows = 0
        self.faults: list[ImageFault] = []
        self._ids = np.empty(num_rows, dtype=np.int64)
        self._labels = np.empty(num_rows, dtype=np.int32)
        self._ends = np.zeros(num_rows + 1, dtype=np.int64)  # row i is bytes ends[i] to ends[i + 1]

    def append(self, row_id: int, label: int, image: bytes) -> None:
        """Add a valid row at the end."""
        try:
            self._file.write(image)
        except OSError as error:
            raise OSError(
                f"temporary folder {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
                "folder with room for all images"
            ) from error
        self._ids[self.rows], self._labels[self.rows] = row_id, label
        self._ends[self.rows + 1] = self._ends[self.rows] + len(image)
        self.rows += 1

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        return int(self._ends[self.rows])

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Valid rows per class, (K,)."""
        return np.bincount(self._labels[: self.rows], minlength=num_classes)

    def columns(self, rows: Rows) -> tuple[Rows, list[bytes], NDArray[np.int32]]:
        """Ids, images and labels of rows, in any order."""
        self._file.flush()
        ends = zip(self._ends[rows].tolist(), self._ends[rows + 1].tolist(), strict=True)
        images = [os.pread(self._file.fileno(), end - start, start) for start, end in ends]
        return self._ids[rows], images, self._labels[rows]


def faults_without_images(split: SourceSplit, num_classes: int) -> dict[int, str]:
    """Faults by row that are found without reading images: unparsable rows, and invalid labels.

    Raises:
        ValueError: Ids occur more than once, so that it is unclear which row is the right one.
    """
    if split.ids is not None:
        ids, first, times = np.unique(split.ids, return_index=True, return_counts=True)
        repeated = np.flatnonzero(times > 1)
        if repeated.size:
            shown = ", ".join(
                f"{ids[i]} ({times[i]} times, first in {split.where(int(first[i]))})"
                for i in repeated[:10]
            )
            raise UserError(f"{repeated.size} ids occur more than once: {shown}")
    outside = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
    faults = {
        row: f"label {split.labels[row]} is outside 0..{num_classes - 1}"
        for row in outside.tolist()
    }
    return faults | dict(split.faults)


def stage(
    split: SourceSplit,
    rows: Rows,
    faults: dict[int, str],
    *,
    max_pixels: int,
    progress: Callable[[int, int], None],
) -> Staged:
    """Read rows of a split, check their images, and stage the valid ones.

    Args:
        rows: Rows to read, rising.
        faults: Faults of other rows, which are added to the result.
        max_pixels: Largest allowed width x height of an image.
        progress: Called with the rows done and the rows in total.
    """
    staged = Staged(len(rows))

    def add_fault(row: int, fault: str) -> None:
        staged.faults.append(ImageFault(row, int(split.labels[row]), split.where(row), fault))

    def collect(chunk: list[tuple[int, Content]], checks: Iterable[str | None]) -> None:
        for (row, content), fault in zip(chunk, checks, strict=True):
            if fault is None and isinstance(content, bytes):
                row_id = row if split.ids is None else int(split.ids[row])
                staged.append(row_id, int(split.labels[row]), content)
            else:
                add_fault(row, str(fault))

    for row, fault in faults.items():
        add_fault(row, fault)
    done = 0
    checked: tuple[list[tuple[int, Content]], Iterable[str | None]] = ([], [])
    with checker_settings(), ThreadPoolExecutor(int(container.cpus())) as pool:
        for chunk in _chunks(zip(rows.tolist(), split.read(rows), strict=True)):
            # Threads check this chunk while the next one is read.
            checks = pool.map(lambda item: _content_fault(item[1], max_pixels), chunk)
            collect(*checked)
            checked = (chunk, checks)
            done += len(chunk)
            progress(done, len(rows))
        collect(*checked)
    staged.faults.sort()
    return staged


def _content_fault(content: Content, max_pixels: int) -> str | None:
    if isinstance(content, FileNotFoundError):
        return "the file does not exist"
    return image_fault(content, max_pixels)


def _chunks(items: Iterable[tuple[int, Content]]) -> Iterator[list[tuple[int, Content]]]:
    chunk: list[tuple[int, Content]] = []
    size = 0
    for row, content in items:
        chunk.append((row, content))
        size += len(content) if isinstance(content, bytes) else 0
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
