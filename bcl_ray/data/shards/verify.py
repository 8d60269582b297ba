"""Verifying shards: everything is read again, and compared with the manifest."""

import hashlib
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bcl_ray.data.shards.attempt import is_table_name
from bcl_ray.data.shards.columns import ShardInfo
from bcl_ray.data.shards.manifest import MANIFEST, SHARDS_FILE, Split, load_manifest
from bcl_ray.machine.parallel import Progress, no_progress
from bcl_ray.storage import files


def verify_shards(uri: str, *, progress: Progress = no_progress) -> list[str]:
    """Read all shards of a data set, and compare them with the manifest.

    Returns:
        A line for each difference; an empty list if there is none.

    Raises:
        ValueError: There is no manifest, or it cannot be read.
        OSError: A shard cannot be read.
    """
    manifest, fingerprint = load_manifest(uri)
    names = files.list_files(uri)
    known = {name for split in manifest.splits.values() for name in split.shards.names}
    known.add(SHARDS_FILE)
    differences = []
    if manifest.fingerprint != fingerprint:
        differences.append(f"{MANIFEST}: the fingerprint does not fit the content")
    differences += [
        f"{file}: not in the manifest"
        for file in names
        if is_table_name(file) and file not in known
    ]
    for name, split in manifest.splits.items():
        differences += _verify_split(uri, name, split, names, progress)
    return differences


def _verify_split(
    uri: str, name: str, split: Split, names: Collection[str], progress: Progress
) -> list[str]:
    differences: list[str] = []
    counts = np.zeros(len(split.class_counts), dtype=np.int64)
    done = 0
    for shard in split.shards:
        if shard.file not in names:
            differences.append(f"{shard.file}: missing")
        else:
            differences += _verify_shard(uri, shard, split, counts)
        done += shard.rows
        progress(f"verifying {name}", done, split.rows)
    if done != split.rows:
        differences.append(f"{name}: {split.rows} rows, and its shards list {done}")
    if not differences and tuple(counts.tolist()) != split.class_counts:
        label = int(np.flatnonzero(counts != split.class_counts)[0])
        differences.append(
            f"{name}: class {label} has {counts[label]} images instead of "
            f"{split.class_counts[label]}"
        )
    return differences


def _verify_shard(uri: str, shard: ShardInfo, split: Split, counts: NDArray[np.int64]) -> list[str]:
    """Differences of one shard; adds its labels to `counts`, (K,)."""
    file = files.join(uri, shard.file)
    size, sha256 = files.with_filesystem(_size_and_hash, file)
    if size != shard.bytes:
        return [f"{shard.file}: {size} bytes instead of {shard.bytes}"]
    if sha256 != shard.sha256:
        return [f"{shard.file}: SHA-256 differs, so its content was changed"]
    labels, group_sizes = files.with_filesystem(_labels_and_group_sizes, file)
    if len(labels) != shard.rows:
        return [f"{shard.file}: {len(labels)} rows instead of {shard.rows}"]
    if any(rows != split.row_group_rows for rows in group_sizes[:-1]):
        return [f"{shard.file}: row groups are not of {split.row_group_rows} rows"]
    counts += np.bincount(labels, minlength=len(counts))[: len(counts)]
    return []


def _size_and_hash(filesystem: Any, path: str) -> tuple[int, str]:
    size, sha256 = 0, hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(8 << 20):
            size += len(chunk)
            sha256.update(chunk)
    return size, sha256.hexdigest()


def _labels_and_group_sizes(filesystem: Any, path: str) -> tuple[NDArray[np.int32], list[int]]:
    with filesystem.open_input_file(path) as handle:
        file = pq.ParquetFile(handle)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return file.read(["label"]).column(0).to_numpy(), sizes
