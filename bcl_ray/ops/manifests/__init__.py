"""Files for real clusters, rendered from one description of a cluster."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.entrypoints import commands
from bcl_ray.ops.manifests.files import TARGETS, render, write
from bcl_ray.ops.manifests.reading import read

__all__ = ["TARGETS", "ClusterDescription", "commands", "read", "render", "write"]
