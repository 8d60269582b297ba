"""Reading shards: a row group at a time, without torch."""

import functools
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq

from bcl_ray.data.shards.manifest import Split
from bcl_ray.storage import files

THREADS = 8  # that look for images
AT_ONCE = 64  # row groups that they look through before it is asked whether all are found


@functools.lru_cache(maxsize=4096)
def footer(uri: str) -> pq.FileMetaData:
    """A shard's footer, read once per process instead of once per row group."""

    def read(filesystem: Any, path: str) -> pq.FileMetaData:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).metadata

    return files.with_filesystem(read, uri)


def read_row_group(uri: str, row_group: int, columns: list[str] | None = None) -> Any:
    """One row group of a shard as a pyarrow table: id, image, label, or some of them."""
    metadata = footer(uri)

    def read(filesystem: Any, path: str) -> Any:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file, metadata=metadata, pre_buffer=True).read_row_group(
                row_group, columns=columns, use_threads=False
            )

    return files.with_filesystem(read, uri)


def find_images(folder: str, split: Split, ids: Collection[int]) -> dict[int, bytes]:
    """The encoded images with these ids, as far as the split has them.

    Only the row groups that hold them are read whole; of the others, up to the last that does,
    the ids.
    """
    wanted = set(ids)
    places = [
        (files.join(folder, shard.file), number)
        for shard in split.shards
        for number in range(-(-shard.rows // split.row_group_rows))
    ]
    found: dict[int, bytes] = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(places), AT_ONCE):
            if len(found) == len(wanted):
                break
            some = places[start : start + AT_ONCE]
            for part in threads.map(functools.partial(_found, wanted), some):
                found |= part
    return found


def _found(wanted: set[int], place: tuple[str, int]) -> dict[int, bytes]:
    here = read_row_group(*place, ["id"])["id"].to_pylist()
    rows = [row for row, number in enumerate(here) if number in wanted]
    if not rows:
        return {}
    images = read_row_group(*place, ["image"])["image"]
    return {here[row]: images[row].as_py() for row in rows}
