"""`python -m bcl_ray` is `bcl-ray`."""

from bcl_ray.cli import main

main()
