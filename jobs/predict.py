"""Label images with a trained model, on a cluster: `bcl-ray predict`."""

from bcl_ray.cli import main

main("predict")
