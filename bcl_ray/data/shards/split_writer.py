"""Writes the shards of one split: staged rows in shuffled order, as Parquet files."""

import hashlib
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bcl_ray.data.shards.columns import ShardInfo
from bcl_ray.data.shards.manifest import Progress, Split
from bcl_ray.data.shards.staging import Staged
from bcl_ray.data.sources import Rows
from bcl_ray.storage import files
from bcl_ray.storage.lease import Lease

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
    ]
)


def write_split(
    target: str,
    name: str,
    staged: Staged,
    *,
    num_classes: int,
    shard_bytes: int,
    seed: int,
    progress: Progress,
    lease: Lease,
) -> Split:
    """Write a split's shards and, if some rows are bad, quarantine-<name>.jsonl, which lists them.

    Args:
        target: Folder or URI of the data set.
        staged: The split's rows, at least one.
        shard_bytes: Target size of a shard.
        progress: Called after every shard.
        lease: Lease of the target; checked before every shard.

    Returns:
        The split's entry in the manifest.

    Raises:
        LeaseLostError: Another process has taken over the target.
        OSError: The target cannot be written.
    """
    group_rows = row_group_rows(staged.rows, staged.total_bytes // staged.rows)
    shards = num_shards(staged.rows, staged.total_bytes, group_rows, shard_bytes)
    order = np.random.default_rng([seed, *name.encode()]).permutation(staged.rows)
    infos, done = [], 0
    for index, rows in enumerate(np.array_split(order, shards)):
        lease.check()
        infos.append(_write_shard(target, f"{name}-{index:05d}.parquet", staged, rows, group_rows))
        done += len(rows)
        progress(f"writing {name}", done, staged.rows)
    if staged.faults:
        lines = [json.dumps(fault._asdict()) + "\n" for fault in staged.faults]
        uri = files.join(target, f"quarantine-{name}.jsonl")
        files.write_bytes(uri, "".join(lines).encode())
    return Split(
        rows=staged.rows,
        class_counts=tuple(staged.class_counts(num_classes).tolist()),
        row_group_rows=group_rows,
        shards=tuple(infos),
        quarantined=len(staged.faults),
    )


def row_group_rows(rows: int, mean_bytes: int) -> int:
    """Rows per row group: at most 256, about 4 MiB, and 1/256 of the split, but 8 if they fit.

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


def _write_shard(target: str, name: str, staged: Staged, rows: Rows, group_rows: int) -> ShardInfo:
    with files.open_write(files.join(target, name)) as file:
        hashing = _HashingFile(file)
        writer = pq.ParquetWriter(
            hashing,
            SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=["id", "label"],  # those of images would be two images per row group
        )
        with writer:
            for start in range(0, len(rows), group_rows):
                columns = staged.columns(rows[start : start + group_rows])
                writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=group_rows)
    return ShardInfo(
        file=name, rows=len(rows), bytes=hashing.size, sha256=hashing.sha256.hexdigest()
    )
