"""Search for better values of some options, on a cluster: `bcl-ray search`."""

from bcl_ray.cli import main

main("search")
