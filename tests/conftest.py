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
