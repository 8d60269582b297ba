"""Train, evaluate and track a run, on a cluster: `bcl-ray train`."""

from bcl_ray.cli import main

main("train")
