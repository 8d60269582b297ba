import time

import pytest

from bcl_ray.storage import s3
from bcl_ray.storage.retry import TransientError

on_swift = pytest.mark.parametrize("s3_server", ["swift"], indirect=True)
WORKER = {"CPU": 1, "GPU": 1}


@pytest.fixture
def cluster(bucket, proxy, monkeypatch):
    """A head without CPUs; data-1, which sees the store through the proxy; train-1, directly."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes.add_node(num_cpus=1, node_name="data-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.server.endpoint)
        nodes.add_node(num_cpus=1, num_gpus=1, node_name="train-1")
        ray.init(nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def locations(bucket):
    return {
        "data.path": (f"{bucket.uri}/data", {"list", "read"}),
        "tracking.runs": (f"{bucket.uri}/runs", {"list", "read", "write", "delete"}),
        "model.weights": ("/local/weights.pt", {"read"}),
    }


@pytest.mark.ray
@on_swift
def test_every_node_is_checked_for_what_it_will_do(cluster, proxy, bucket, locations, monkeypatch):
    from bcl_ray.ray_runtime.access import check_everywhere

    proxy.plan("denied", times=1000, method="PUT")
    check_everywhere(locations, per_worker=WORKER)  # data-1 need not write
    assert {method for method, _ in proxy.requests} == {"GET"}
    with pytest.raises(
        ValueError, match="object storage cannot be used as this run needs"
    ) as raised:
        check_everywhere(locations)
    (problem,) = str(raised.value).split("\n  tracking.runs: ")[1:]
    assert problem.startswith(f"{bucket.uri}/runs: access denied, these credentials must not write")
    assert problem.endswith("\n    on node data-1")
    assert bucket.keys() == []

    proxy.calm()
    proxy.plan("swallow", times=1000)
    began = time.monotonic()
    with pytest.raises(
        TransientError, match=r"data\.path: .* does not answer: .*\n    on node data-1$"
    ):
        check_everywhere(locations, per_worker=WORKER)
    assert time.monotonic() - began < 15

    proxy.calm()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-driver")
    with pytest.raises(ValueError, match=r"secret key is wrong.*\n    on the driver") as raised:
        check_everywhere(locations)
    assert "node" not in str(raised.value)
    assert "of-the-driver" not in str(raised.value)


def test_local_paths_are_not_checked(monkeypatch):
    """And Ray is not needed."""
    from bcl_ray.ray_runtime.access import check_everywhere

    monkeypatch.setattr(s3, "check_access", None)
    check_everywhere({"data.path": ("/data", {"read"}), "tracking.runs": ("file:///x", {"read"})})


def test_a_node_of_data_tasks_only_is_checked_neither_for_weights_nor_for_runs():
    from bcl_ray.ray_runtime.access import _needed

    locations = {
        "data.path": ("s3://b/data", {"list", "read"}),
        "tracking.runs": ("s3://b/runs", {"list", "read", "write", "delete"}),
        "model.weights": ("s3://b/weights.pt", {"read"}),
    }
    assert _needed(locations, {"CPU": 4.0, "GPU": 1.0}, WORKER).keys() == locations.keys()
    assert _needed(locations, {"CPU": 4.0}, WORKER).keys() == {"data.path"}
    assert _needed(locations, {}, WORKER) == {}
