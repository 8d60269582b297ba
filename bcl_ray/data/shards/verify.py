"""Verifying shards: read everything again and compare it with the manifest."""

import hashlib
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bcl_ray.data.shards.manifest import (
    MANIFEST,
    Progress,
    ShardInfo,
    Split,
    load_manifest,
    no_progress,
)
from bcl_ray.storage import files


def verify_shards(uri: str, *, progress: Progress = no_progress) -> list[str]:
    """Read everything again and name what differs from the manifest; empty: all is well.

    Raises:
        ValueError: there is no manifest that could be read.
    """
    manifest = load_manifest(uri)
    names = files.list_files(uri)
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    differences = []
    if manifest.fingerprint != manifest.content_fingerprint():
        differences.append(f"{MANIFEST}: the fingerprint does not fit the content")
    differences += [
        f"{file}: not in the manifest"
        for file in names
        if file.endswith(".parquet") and file not in listed
    ]
    for name, split in manifest.splits.items():
        counts = np.zeros(len(split.class_counts), dtype=np.int64)
        done, before = 0, len(differences)
        for shard in split.shards:
            if shard.file not in names:
                differences.append(f"{shard.file}: missing")
            else:
                differences += _verify_shard(uri, shard, split, counts)
            done += shard.rows
            progress(f"verifying {name}", done, split.rows)
        if done != split.rows:
            differences.append(f"{name}: {split.rows} rows, and its shards list {done}")
        if len(differences) == before and tuple(counts.tolist()) != split.class_counts:
            label = int(np.flatnonzero(counts != split.class_counts)[0])
            differences.append(
                f"{name}: class {label} has {counts[label]} images instead of "
                f"{split.class_counts[label]}"
            )
    return differences


def _verify_shard(uri: str, shard: ShardInfo, split: Split, counts: NDArray[np.int64]) -> list[str]:
    """Differences of one shard; adds its labels to the split's counts."""
    file = files.join(uri, shard.file)
    size, sha256 = files.with_filesystem(_digest, file)
    if size != shard.bytes:
        return [f"{shard.file}: {size} bytes instead of {shard.bytes}"]
    if sha256 != shard.sha256:
        return [f"{shard.file}: SHA-256 differs, so its content was changed"]
    labels, groups = files.with_filesystem(_labels_and_groups, file)
    if len(labels) != shard.rows:
        return [f"{shard.file}: {len(labels)} rows instead of {shard.rows}"]
    if any(rows != split.row_group_rows for rows in groups[:-1]):
        return [f"{shard.file}: row groups are not of {split.row_group_rows} rows"]
    counts += np.bincount(labels, minlength=len(counts))[: len(counts)]
    return []


def _digest(filesystem: Any, path: str) -> tuple[int, str]:
    """Bytes of a file, and their SHA-256."""
    size, sha256 = 0, hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(8 << 20):
            size += len(chunk)
            sha256.update(chunk)
    return size, sha256.hexdigest()


def _labels_and_groups(filesystem: Any, path: str) -> tuple[NDArray[np.int32], list[int]]:
    """All labels of a shard, and the rows of each of its row groups."""
    with filesystem.open_input_file(path) as handle:
        file = pq.ParquetFile(handle)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return file.read(["label"]).column(0).to_numpy(), groups
