"""Files for real clusters, from one description of a cluster."""

from bcl_ray.render.description import Description, read
from bcl_ray.render.files import TARGETS, render, write

__all__ = ["TARGETS", "Description", "read", "render", "write"]
