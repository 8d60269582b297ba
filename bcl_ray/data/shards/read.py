"""Reading shards, a row group at a time."""

import functools
import itertools
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cachetools
import pyarrow.parquet as pq

from bcl_ray.data.shards.manifest import Split
from bcl_ray.storage import files

FOOTERS_BYTES = 64 * 2**20  # of footers that a process keeps in memory
FOOTER_MEMORY = 11  # bytes in memory per byte in the file (measured 2026-11, pyarrow 25)
SEARCH_THREADS = 8  # row groups that are searched at the same time
SEARCH_CHUNK = 64  # row groups that are searched before it is checked whether all ids are found


def _memory_of(footer: pq.FileMetaData) -> int:
    """Bytes that a footer takes in memory, about."""
    return FOOTER_MEMORY * int(footer.serialized_size)


@cachetools.cached(cachetools.LRUCache(FOOTERS_BYTES, getsizeof=_memory_of), lock=threading.Lock())
def read_footer(uri: str) -> pq.FileMetaData:
    """A shard's footer; a process keeps those it has used last."""

    def read(filesystem: Any, path: str) -> pq.FileMetaData:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).metadata

    return files.with_filesystem(read, uri)


def read_row_group(uri: str, row_group: int, columns: list[str] | None = None) -> Any:
    """One row group of a shard as a pyarrow table, with all columns (id, image, label) or some."""
    footer = read_footer(uri)

    def read(filesystem: Any, path: str) -> Any:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file, metadata=footer, pre_buffer=True).read_row_group(
                row_group, columns=columns, use_threads=False
            )

    return files.with_filesystem(read, uri)


def find_images(folder: str, split: Split, ids: Collection[int]) -> dict[int, bytes]:
    """Find images of a split by their ids.

    The ids of all row groups are read, in order, until all images are found; images are read only
    from the row groups that contain some of them.

    Args:
        folder: Folder or URI of the data set.

    Returns:
        The encoded images by id; ids that the split does not have are left out.
    """
    ids = set(ids)
    row_groups = _row_groups(folder, split)
    images: dict[int, bytes] = {}
    with ThreadPoolExecutor(SEARCH_THREADS) as threads:
        while len(images) < len(ids):
            chunk = list(itertools.islice(row_groups, SEARCH_CHUNK))
            if not chunk:
                break
            for part in threads.map(functools.partial(_find_in_row_group, ids), chunk):
                images |= part
    return images


def _row_groups(folder: str, split: Split) -> Iterator[tuple[str, int]]:
    """URI of the shard and position in it of every row group."""
    for shard in split.shards:
        for number in range(-(-shard.rows // split.row_group_rows)):
            yield files.join(folder, shard.file), number


def _find_in_row_group(ids: set[int], row_group: tuple[str, int]) -> dict[int, bytes]:
    group_ids = read_row_group(*row_group, ["id"])["id"].to_pylist()
    rows = [row for row, number in enumerate(group_ids) if number in ids]
    if not rows:
        return {}
    images = read_row_group(*row_group, ["image"])["image"]
    return {group_ids[row]: images[row].as_py() for row in rows}
