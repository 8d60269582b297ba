"""Writes the shards of one split: selected rows in shuffled order, as Parquet files."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bcl_ray.data.shards.attempt import Attempt, ShardWork
from bcl_ray.data.shards.columns import ShardColumns, ShardInfo
from bcl_ray.data.shards.manifest import Split
from bcl_ray.data.shards.selection import Selection
from bcl_ray.data.sources import Content, Rows
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
    ]
)


class WrittenShard(NamedTuple):
    """Size and hash of a shard's file."""

    bytes: int
    sha256: str


class SourceChangedError(UserError):
    """An image is not the one that was checked."""


def write_split(work: ShardWork, selection: Selection, shard_bytes: int) -> Split:
    """Write a split's shards and, if some rows are bad, quarantine-<name>.jsonl, which lists them.

    Args:
        work: Has the shards that were written earlier, and runs a task for each of the others.
        selection: The split's rows, all checked; at least one.
        shard_bytes: Target size of a shard.

    Returns:
        The split's entry in the manifest.

    Raises:
        SourceChangedError: An image is not the one that was checked.
        LeaseLostError: Another process has taken over the target.
        OSError: The source cannot be read, or the target cannot be written.
    """
    name, rows = selection.name, len(selection.rows)
    total_bytes = int(selection.checked.sizes[selection.rows].sum())
    group_rows = row_group_rows(rows, total_bytes // rows)
    shards = num_shards(rows, total_bytes, group_rows, shard_bytes)
    seed = [selection.profile.seed, *name.encode()]
    order = np.random.default_rng(seed).permutation(rows)
    parts = {
        f"{name}-{index:05d}.parquet": part
        for index, part in enumerate(np.array_split(order, shards))
    }
    written: dict[str, WrittenShard] = {}
    task_of = partial(_task, work.attempt, selection, parts, group_rows)
    done = 0
    for file, shard in work.results("written", parts, task_of, write_shard, _parse_shard):
        written[file] = shard
        done += len(parts[file])
        work.progress(f"writing {name}", done, rows)
    if selection.num_faults:
        lines = [json.dumps(fault._asdict()) + "\n" for fault in selection.faults()]
        work.attempt.fence.check()
        uri = files.join(work.attempt.target, f"quarantine-{name}.jsonl")
        files.write_bytes(uri, "".join(lines).encode())
    num_classes = len(selection.class_names)
    return Split(
        rows=rows,
        class_counts=tuple(np.bincount(selection.labels, minlength=num_classes).tolist()),
        row_group_rows=group_rows,
        shards=ShardColumns.of(
            ShardInfo(file=file, rows=len(part), **written[file]._asdict())
            for file, part in parts.items()
        ),
        quarantined=selection.num_faults,
    )


def row_group_rows(rows: int, mean_bytes: int) -> int:
    """Rows per row group: at most 256, 4 MiB, and 1/256 of the split or 8 rows if that is more.

    An epoch plan holds about as many row groups decoded as a batch has images, so they are small.
    They are many, so that batches of up to 256 images have steps for all rows of a row group
    (`data.lanes`). Reading one takes 0.3 ms, whatever its size (measured 2026-11).
    """
    return max(1, min(256, (4 << 20) // max(mean_bytes, 1), max(8, rows // 256)))


def num_shards(rows: int, total_bytes: int, group_rows: int, shard_bytes: int) -> int:
    """Number of shards: for about `shard_bytes` each, but at least 8 if there are 8 row groups."""
    shards = max(-(-total_bytes // shard_bytes), min(8, rows // group_rows))
    return max(1, min(rows, shards))


class _HashingFile(io.RawIOBase):
    """A file that passes bytes on to another one, and counts and hashes them."""

    def __init__(self, file: Any) -> None:
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


@dataclass(frozen=True)
class ShardTask:
    """A shard to write; axes: N rows of the shard, in its order."""

    attempt: Attempt
    file: str
    """Name of the file."""
    images: Iterable[Content]
    ids: Rows
    """(N,)."""
    labels: Rows
    """(N,)."""
    checksums: NDArray[np.uint32]
    """CRC-32 of each image when it was checked, (N,)."""
    group_rows: int
    """Rows per row group."""


def _task(
    attempt: Attempt, selection: Selection, parts: dict[str, Rows], group_rows: int, file: str
) -> ShardTask:
    rows = selection.rows[parts[file]]
    split, checked = selection.split, selection.checked
    return ShardTask(
        attempt,
        file,
        split.read(rows) if split.random_access else checked.copies(attempt.folder, rows),
        ids=rows if split.ids is None else split.ids[rows],
        labels=split.labels[rows],
        checksums=checked.checksums[rows],
        group_rows=group_rows,
    )


def write_shard(task: ShardTask) -> WrittenShard:
    """Write a shard and its record; in memory are a row group and the images that are read ahead.

    Raises:
        SourceChangedError: An image is not the one that was checked.
        LeaseLostError: Another process has taken over the target.
        OSError: The source cannot be read, or the target cannot be written.
    """
    start = 0
    with files.open_write(files.join(task.attempt.target, task.file)) as file:
        hashing = _HashingFile(file)
        writer = pq.ParquetWriter(
            hashing,
            SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=["id", "label"],  # those of images would be two images per row group
        )
        with writer:
            for images in _batched(_unchanged(task), task.group_rows):
                rows = slice(start, start := start + len(images))
                columns = [task.ids[rows], images, task.labels[rows]]
                writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=len(images))
        task.attempt.fence.check()
    shard = WrittenShard(hashing.size, hashing.sha256.hexdigest())
    task.attempt.write(f"written-{task.file}", json.dumps(shard).encode())
    return shard


def _parse_shard(record: bytes) -> WrittenShard:
    return WrittenShard(*json.loads(record))


def _unchanged(task: ShardTask) -> Iterator[bytes]:
    """The images, each the one that was checked."""
    rows = zip(task.images, task.checksums.tolist(), task.ids.tolist(), strict=True)
    for content, checksum, row_id in rows:
        if isinstance(content, OSError) or crc32(content) != checksum:
            raise SourceChangedError(
                f"{task.file}: the image with id {row_id} was changed or removed while it was "
                "sharded: let nothing write to the source, and shard again"
            )
        yield content


def _batched(images: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(islice(images, size)):
        yield batch
