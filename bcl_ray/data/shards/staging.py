"""Staging: a split's chosen rows, each image decoded once, their bytes in a local file.

The file lies in the temporary folder (TMPDIR, which must be on a disk, not in memory) and has
no name, so that not even kill -9 leaves it behind; it takes as many bytes as the images. In
memory there are a few numbers per row, and the images that are being checked.
"""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bcl_ray.data.decode import decode
from bcl_ray.data.sources import Content, Rows, SourceSplit
from bcl_ray.machine import container
from bcl_ray.machine.errors import UserError

# What both Pillow and OpenCV read; some of Pillow's other formats start outside programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Pillow's names of what OpenCV decodes to the same pixels: not 16 bits of gray, floats or LAB.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
CHUNK_ROWS, CHUNK_BYTES = 64, 16 << 20  # images checked at a time; two such are held


class ImageFault(NamedTuple):
    """A row that cannot be used, and why."""

    row: int
    label: int
    where: str
    fault: str


class Staged:
    """Good rows of a split in the source's order, and the faults of the others."""

    def __init__(self, num_rows: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.rows = 0
        self.faults: list[ImageFault] = []
        self._ids = np.empty(num_rows, dtype=np.int64)
        self._labels = np.empty(num_rows, dtype=np.int32)
        self._ends = np.zeros(num_rows + 1, dtype=np.int64)

    def append(self, row_id: int, label: int, image: bytes) -> None:
        """Add a good row at the end."""
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
        """Give the disk space back."""
        self._file.close()

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        return int(self._ends[self.rows])

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Good rows per class, (K,)."""
        return np.bincount(self._labels[: self.rows], minlength=num_classes)

    def columns(self, rows: Rows) -> tuple[Rows, list[bytes], NDArray[np.int32]]:
        """Ids, images and labels of rows, in any order."""
        self._file.flush()
        ends = zip(self._ends[rows].tolist(), self._ends[rows + 1].tolist(), strict=True)
        images = [os.pread(self._file.fileno(), end - start, start) for start, end in ends]
        return self._ids[rows], images, self._labels[rows]


def known_faults(split: SourceSplit, num_classes: int) -> dict[int, str]:
    """Faults of rows that show without reading an image: unparsable, or labelled outside.

    Raises:
        ValueError: ids that occur twice; which row is right cannot be told.
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
    report: Callable[[int, int], None],
) -> Staged:
    """Read rows (rising) of a split and keep the good ones; `faults` are known before."""
    staged = Staged(len(rows))

    def label(row: int) -> int:
        return int(split.labels[row])

    def collect(chunk: list[tuple[int, Content]], found: Iterable[str | None]) -> None:
        for (row, content), fault in zip(chunk, found, strict=True):
            if fault is None and isinstance(content, bytes):
                row_id = row if split.ids is None else int(split.ids[row])
                staged.append(row_id, label(row), content)
            else:
                staged.faults.append(ImageFault(row, label(row), split.where(row), str(fault)))

    staged.faults += [
        ImageFault(row, label(row), split.where(row), fault) for row, fault in faults.items()
    ]
    done = 0
    waiting: tuple[list[tuple[int, Content]], Iterable[str | None]] = ([], [])
    with checking(), ThreadPoolExecutor(int(container.cpus())) as pool:
        for chunk in _chunks(zip(rows.tolist(), split.read(rows), strict=True)):
            # One chunk is decoded while the next one is read.
            checks = pool.map(lambda item: image_fault(item[1], max_pixels), chunk)
            collect(*waiting)
            waiting = (chunk, checks)
            done += len(chunk)
            report(done, len(rows))
        collect(*waiting)
    staged.faults.sort()
    return staged


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


@contextmanager
def checking() -> Iterator[None]:
    """Put max_pixels in the place of Pillow's own limit, and faults in that of OpenCV's log.

    Both settings are the process's, so they are put back.
    """
    log = getattr(cv2.utils, "logging", cv2)  # since OpenCV 5, and before
    most, level = Image.MAX_IMAGE_PIXELS, log.getLogLevel()
    Image.MAX_IMAGE_PIXELS = None
    log.setLogLevel(0)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = most
        log.setLogLevel(level)


def image_fault(content: Content, max_pixels: int) -> str | None:
    """Why an image cannot be used, or None; call it within `checking`.

    Pillow reads the header, which is cheap and knows the mode. Then the image is decoded as it
    is for training, since a cut file has a sound header.
    """
    if isinstance(content, FileNotFoundError):
        return "the file does not exist"
    try:
        image_sides(content, max_pixels)
        decode(content)
    except ValueError as error:
        return str(error)
    return None


def image_sides(
    content: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS
) -> tuple[int, int]:
    """Width and height of an image by its header; call it within `checking`.

    Raises:
        ValueError: an image that OpenCV would not decode to Pillow's pixels, or too large a one.
    """
    if not content:
        raise UserError("the image is empty")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:  # on hostile bytes, decoders raise anything
        reason = re.sub(r"<_io.BytesIO.*?>", "its bytes", " ".join(str(error).split()))
        raise UserError(f"does not decode: {reason or type(error).__name__}") from None
    if width * height > max_pixels:
        raise UserError(f"{width} x {height} pixels are more than max_pixels ({max_pixels:,})")
    if mode not in MODES:
        raise UserError(f"its mode {mode} is none of {', '.join(MODES)}: convert it to RGB")
    return width, height
