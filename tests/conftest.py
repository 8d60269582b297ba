import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_cluster import local_cluster  # noqa: F401  (a fixture)
from tests.s3_servers import bucket, proxy, s3_server  # noqa: F401  (fixtures)
from tests.tracked import database, sqlite  # noqa: F401  (fixtures)
from tests.trained import trained  # noqa: F401  (a fixture)

# Two threads per process on two cores cost more than they bring, in processes that run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background without SIGINT, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALONE = {"test_predict"}  # files whose own fixtures cost more than a shared server


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share something costly run in one process, one by one; the longest first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    long = {_group(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: _group(item) not in long)


def _group(item: pytest.Item) -> str:
    shared = {"local_cluster", "s3_server"} & set(item.fixturenames)
    if item.path.stem in ALONE or not shared:
        return item.path.parent.name if item.path.parent.name == "e2e" else item.path.stem
    return "local_cluster" if "local_cluster" in shared else item.callspec.params["s3_server"]


@pytest.fixture(autouse=True)
def tracking_stays() -> Iterator[None]:
    """MLflow's set_tracking_uri sets a variable, by which all that follows would go elsewhere."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before, "the test has changed it"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real long-tailed sets: BCL_RAY_TEST_DATA, or ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("BCL_RAY_TEST_DATA", beside))
    if not data.is_dir():
        pytest.skip(f"real data is not here: set BCL_RAY_TEST_DATA ({data} does not exist)")
    return data
