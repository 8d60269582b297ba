import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local_cluster import local_cluster  # noqa: F401  (a fixture)
from tests.s3_servers import bucket, proxy, s3_server  # noqa: F401  (fixtures)
from tests.tracked import database, sqlite  # noqa: F401  (fixtures)
from tests.trained import trained  # noqa: F401  (a fixture)

# Two threads per process on two cores cost more than they bring, in processes that run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background without SIGINT, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that share servers, which take tens of seconds to start.
SHARED = {"test_doctor": "cluster", "test_jobs": "cluster", "test_local": "cluster"}
SHARED |= {"test_access": "s3", "test_lease": "s3", "test_policies": "s3", "test_s3": "s3"}
SHARED |= {"test_slurm": "drivers"}  # it waits a lot: not at the end, where nobody else computes
# Drills of two clusters.
DRILLS = dict.fromkeys(("test_aftermath", "test_storage", "test_workers"), "training")
DRILLS |= dict.fromkeys(("test_drivers", "test_elastic", "test_two_drivers"), "drivers")

# Fixtures that start servers or a browser: `make test-fast` leaves out who uses them.
SERVERS = {"s3_server", "local_cluster", "session_server", "address", "protected", "processes"}


def group(nodeid: str) -> str:
    """Tests of one group run in one process, one after another."""
    file = Path(nodeid.partition("::")[0])
    groups = {"e2e": {file.stem: "e2e"}, "faults": DRILLS}.get(file.parent.name, SHARED)
    return groups.get(file.stem, file.stem)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups in their order. (xdist's own marks are lost on pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says nothing
    return Groups(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what uses a server when it is collected: `-m` selects before items are sorted."""
    if SERVERS & set(getattr(item, "fixturenames", ())):
        item.add_marker("server")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that take long come first, lest one process waits for the other at the end."""
    order: dict[str, int] = {}
    for rank, mark in reversed(list(enumerate(("ray", "server", "slow")))):
        order |= dict.fromkeys((group(i.nodeid) for i in items if i.get_closest_marker(mark)), rank)
    order["training"] = -1  # the longest of the drills
    items.sort(key=lambda item: order.get(group(item.nodeid), 3))


@pytest.fixture(autouse=True)
def tracking_stays() -> Iterator[None]:
    """MLflow's set_tracking_uri sets a variable, by which all that follows would go elsewhere."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before, "the test has changed it"


@pytest.fixture
def links(monkeypatch) -> Callable[[Path], dict[str, str]]:
    """Puts into a folder what is neither a file nor a folder; returns what is said of each."""

    def make(folder: Path) -> dict[str, str]:
        (folder / "dangling.png").symlink_to("/nonexistent/x.png")
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "above").symlink_to("..")
        (folder / "self").symlink_to(".")
        (folder / "endless.png").symlink_to("/dev/zero")
        os.mkfifo(folder / "pipe.png")
        monkeypatch.chdir(folder)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.png")
        return {
            "above": "it is a folder, not a file",
            "dangling.png": "it is a link that leads nowhere",
            "endless.png": "it is a device, not a file",
            "loop.png": "no file can be read there (Too many levels of symbolic links)",
            "pipe.png": "it is a pipe, not a file",
            "self": "it is a folder, not a file",
            "socket.png": "it is a socket, not a file",
        }

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real long-tailed sets: BCL_RAY_TEST_DATA, or ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("BCL_RAY_TEST_DATA", beside))
    if not data.is_dir():
        pytest.skip(f"real data is not here: set BCL_RAY_TEST_DATA ({data} does not exist)")
    return data
