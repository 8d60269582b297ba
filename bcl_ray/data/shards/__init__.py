"""Shards: write, read and verify Parquet files of images, and the manifest beside them.

Contract: columns id (int64, unique in its split), image (binary, encoded as in the source) and
label (int32). Rows are shuffled once over the whole split, so that any contiguous piece is
class-mixed. Shards of a split are within one row of each other; row groups have
`Split.row_group_rows` rows but for each shard's last, so that the layout follows from the
manifest by arithmetic.
"""

from bcl_ray.data.shards.manifest import (
    INCOMPLETE,
    MANIFEST,
    Manifest,
    ProfileInfo,
    Progress,
    ShardInfo,
    Split,
    read_manifest,
)
from bcl_ray.data.shards.read import find_images, read_row_group
from bcl_ray.data.shards.verify import verify_shards
from bcl_ray.data.shards.write import MAX_PIXELS, SHARD_BYTES, write_shards

__all__ = [
    "INCOMPLETE",
    "MANIFEST",
    "MAX_PIXELS",
    "SHARD_BYTES",
    "Manifest",
    "ProfileInfo",
    "Progress",
    "ShardInfo",
    "Split",
    "find_images",
    "read_manifest",
    "read_row_group",
    "verify_shards",
    "write_shards",
]
