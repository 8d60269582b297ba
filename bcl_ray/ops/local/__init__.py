"""A whole cluster on one machine, of real processes, for trying things out and for tests."""

from bcl_ray.ops.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
