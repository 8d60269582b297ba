"""Files for real clusters, from one description of a cluster."""

from bcl_ray.render.description import Description
from bcl_ray.render.files import TARGETS, render, write
from bcl_ray.render.jobs import commands
from bcl_ray.render.reading import read

__all__ = ["TARGETS", "Description", "commands", "read", "render", "write"]
