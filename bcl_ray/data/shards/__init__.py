"""Shards: Parquet files of images, with a manifest beside them.

Columns are id (int64, unique in its split), image (binary, encoded as in the source) and label
(int32). The rows of a split are shuffled before they are written, so that any contiguous piece
contains all classes in proportion. The shards of a split have equal numbers of rows, or differ by
one row. Row groups have `Split.row_group_rows` rows, except for the last of each shard, so that
the manifest is enough to compute where a row is.
"""

from bcl_ray.data.shards.columns import NumberedNames, ShardColumns, ShardInfo
from bcl_ray.data.shards.manifest import (
    INCOMPLETE,
    MANIFEST,
    Manifest,
    ProfileInfo,
    Split,
    read_manifest,
)
from bcl_ray.data.shards.options import MAX_PIXELS, SHARD_BYTES
from bcl_ray.data.shards.read import find_images, read_row_group
from bcl_ray.data.shards.verify import verify_shards
from bcl_ray.data.shards.write import write_shards

__all__ = [
    "INCOMPLETE",
    "MANIFEST",
    "MAX_PIXELS",
    "SHARD_BYTES",
    "Manifest",
    "NumberedNames",
    "ProfileInfo",
    "ShardColumns",
    "ShardInfo",
    "Split",
    "find_images",
    "read_manifest",
    "read_row_group",
    "verify_shards",
    "write_shards",
]
