"""Turn images into shards, on a cluster: `bcl-ray shard`."""

from bcl_ray.cli import main

main("shard")
