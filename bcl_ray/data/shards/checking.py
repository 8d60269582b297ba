"""Tasks that read a part of the source's rows, and check their images.

The results are a few numbers per row. The images themselves are read again when shards are written,
from the source if it can be read in any order, and otherwise from a copy that the check has made.

Axes: N rows of a part.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bcl_ray.data.image_check import checker_settings, image_fault
from bcl_ray.data.shards.attempt import Attempt
from bcl_ray.data.sources import Content, FileParts, Rows
from bcl_ray.storage import files

SCHEMA = pa.schema([("size", pa.int64()), ("checksum", pa.uint32()), ("fault", pa.string())])


@dataclass(frozen=True)
class CheckTask:
    """Images to check, and where to put the result."""

    attempt: Attempt
    part: str
    """Name of the part."""
    images: Iterable[Content]
    max_pixels: int
    copies: bool
    """Whether to copy the images that can be used to a file."""


def check_images(task: CheckTask) -> pa.Table:
    """Check images; returns `size`, `checksum` and `fault` of each, and records them.

    Memory holds the images that `read_ahead` has fetched; they are decoded one at a time.

    Raises:
        LeaseLostError: Another process has taken over the target.
        OSError: The source cannot be read, or the target cannot be written.
    """
    rows: list[tuple[int, int, str | None]] = []
    copy_file = files.join(task.attempt.folder, f"copied-{task.part}")
    with checker_settings(), files.open_write(copy_file) if task.copies else nullcontext() as copy:
        for content in task.images:
            if isinstance(content, OSError):
                missing = isinstance(content, FileNotFoundError)
                rows.append((0, 0, "the file does not exist" if missing else str(content)))
            elif fault := image_fault(content, task.max_pixels):
                rows.append((0, 0, fault))
            else:
                rows.append((len(content), crc32(content), None))
                if copy is not None:
                    copy.write(content)
        task.attempt.fence.check()
    table = pa.table(list(zip(*rows, strict=True)), schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    task.attempt.write(f"checked-{task.part}", sink.getvalue().to_pybytes())
    return table


def parse_check(record: bytes) -> pa.Table:
    """The result of a check from its record."""
    return pq.read_table(pa.BufferReader(record))


class CheckedRows:
    """What is known of the rows of a split; axes here: N rows of the split."""

    def __init__(self, rows: int) -> None:
        self.sizes = np.full(rows, -1, np.int64)  # bytes of each image; -1 where it is not checked
        self.checksums = np.zeros(rows, np.uint32)
        self.is_bad = np.zeros(rows, np.bool_)
        self.faults: dict[int, str] = {}  # by row
        self.parts: dict[str, int] = {}  # numbers of the parts that have been checked, by name
        self._part_numbers = np.zeros(rows, np.int32)
        self._starts = np.zeros(rows, np.int64)  # first byte of each image in its part's copy

    def add(self, part: str, rows: Rows, table: pa.Table) -> None:
        """Add the result of a check."""
        sizes, faults = table["size"].to_numpy(), table["fault"].to_pylist()
        self.sizes[rows], self.checksums[rows] = sizes, table["checksum"].to_numpy()
        self._starts[rows] = np.cumsum(sizes) - sizes
        self._part_numbers[rows] = self.parts.setdefault(part, len(self.parts))
        for row, fault in zip(rows.tolist(), faults, strict=True):
            if fault is not None:
                self.faults[row], self.is_bad[row] = fault, True

    def copies(self, folder: str, rows: Rows) -> FileParts:
        """The copies of some rows, in any order."""
        names = list(self.parts)
        used, numbers = np.unique(self._part_numbers[rows], return_inverse=True)
        parts = tuple(files.join(folder, f"copied-{names[number]}") for number in used)
        return FileParts(parts, numbers, self._starts[rows], self.sizes[rows])
