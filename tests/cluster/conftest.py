from pathlib import Path

import pytest

from bcl_ray.ops.manifests import read

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def description():
    return read(ROOT / "cluster" / "cluster.yaml")
