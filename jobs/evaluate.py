"""Evaluate runs again, on a cluster: `bcl-ray evaluate`."""

from bcl_ray.cli import main

main("evaluate")
