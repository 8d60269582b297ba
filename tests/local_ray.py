"""A Ray of a test's own, on two CPUs."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def local_ray_running() -> Iterator[None]:
    """A new Ray; without "local", a test would join one that another test has started."""
    import ray

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
