"""Reading shards: a row group at a time, without torch."""

import functools
from typing import Any

import pyarrow.parquet as pq

from bcl_ray import storage


@functools.lru_cache(maxsize=4096)
def footer(uri: str) -> pq.FileMetaData:
    """A shard's footer, read once per process instead of once per row group."""

    def read(filesystem: Any, path: str) -> pq.FileMetaData:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).metadata

    return storage.retried(read, uri)


def read_row_group(uri: str, row_group: int, columns: list[str] | None = None) -> Any:
    """One row group of a shard as a pyarrow table: id, image, label, or some of them."""
    metadata = footer(uri)

    def read(filesystem: Any, path: str) -> Any:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file, metadata=metadata, pre_buffer=True).read_row_group(
                row_group, columns=columns, use_threads=False
            )

    return storage.retried(read, uri)
