"""One local cluster for all tests that need a real one: a head, a data node, two to train on."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_servers import free_block


@pytest.fixture(scope="session")
def local_cluster() -> Iterator:
    """It is shared: a test brings back what it has killed, stopped or added."""
    from bcl_ray.ops.local import LocalCluster

    with tempfile.TemporaryDirectory(prefix="bcl-ray-test-") as folder:
        cluster = LocalCluster(Path(folder) / "cluster")
        try:
            cluster.up(port=free_block(20))
            yield cluster
        finally:
            cluster.down(wipe=True)
