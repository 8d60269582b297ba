"""Compare configurations over several seeds, on a cluster: `bcl-ray study`."""

from bcl_ray.cli import main

main("study")
