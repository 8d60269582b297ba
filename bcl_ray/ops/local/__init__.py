"""A whole cluster on one machine, made of real processes, for trials and tests."""

from bcl_ray.ops.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
