import re

import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime.capacity import check_cluster, uses_gpus
from bcl_ray.ray_runtime.connection import Resources, connected, one_line, root_cause
from bcl_ray.storage.retry import TransientError


def cluster(*nodes: dict[str, float]) -> Resources:
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    return Resources(cpus, gpus, 2.0**30, nodes)


def experiment(*overrides: str):
    return with_overrides(
        cifar10_lt(), ["data.path=s3://b/data", "tracking.runs=s3://b/runs", *overrides]
    )


@pytest.mark.parametrize(
    ("device", "gpus", "used"),
    [("auto", 0, False), ("auto", 2, True), ("cuda", 2, True), ("cpu", 2, False)],
)
def test_workers_get_a_gpu_each_where_there_are_enough(device, gpus, used):
    options = experiment("scale.workers=2", f"scale.device={device}")
    assert uses_gpus(options, cluster({"CPU": 8, "GPU": gpus})) is used


@pytest.mark.parametrize(("device", "gpus"), [("auto", 1), ("cuda", 1), ("cuda", 0)])
def test_fewer_gpus_than_workers_are_refused_instead_of_waited_for(device, gpus):
    options = experiment("scale.workers=2", f"scale.device={device}")
    message = (
        f"scale.workers (2) is more than the number of GPUs that the cluster has ({gpus}): lower it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        uses_gpus(options, cluster({"CPU": 8, "GPU": gpus}))


def test_workers_that_fit_in_total_but_on_no_node_are_refused():
    options = experiment("scale.workers=2", "scale.cpus_per_worker=3")
    check_cluster(options, cluster({"CPU": 6}))
    message = "room for 0 workers of scale.cpus_per_worker (3), scale.workers is 2"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_cluster(options, cluster({"CPU": 2}, {"CPU": 2}, {"CPU": 2}))


def test_workers_that_fit_exactly_are_not_refused_for_an_error_of_rounding():
    assert int(7 / 0.07) == 99
    options = experiment(
        "scale.workers=100", "scale.cpus_per_worker=0.07", "optim.global_batch_size=200"
    )
    check_cluster(options, cluster({"CPU": 7}))


@pytest.mark.parametrize("option", ["data.path", "tracking.runs", "model.weights"])
def test_a_local_path_is_refused_on_several_nodes(option):
    options = experiment(f"{option}=/data/here")
    check_cluster(options, cluster({"CPU": 4}))
    with pytest.raises(ValueError, match=rf"^{re.escape(option)} \(/data/here\) is a path of this"):
        check_cluster(options, cluster({"CPU": 4}, {"CPU": 4}))
    check_cluster(experiment(f"{option}=file:///mnt/data"), cluster({"CPU": 4}, {"CPU": 4}))


def test_one_line_is_the_root_causes_first_line():
    outer = RuntimeError("a task failed")
    outer.__cause__ = ValueError("image with id 3 does not decode\nand more")
    assert root_cause(outer) is outer.__cause__
    assert one_line(outer) == "ValueError: image with id 3 does not decode"


def test_rank_zero_is_kept_on_steady_nodes_where_there_are_any():
    from bcl_ray.training.preparation import rank_zero_labels

    spot = Resources(8, 0, 2.0**30, (), markets=frozenset({"spot"}))
    mixed = Resources(8, 0, 2.0**30, (), markets=frozenset({"spot", "steady"}))
    assert rank_zero_labels(3, spot) is None
    assert rank_zero_labels(3, mixed) == [{"bcl-ray.io/market": "steady"}, {}, {}]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "auto",
            r"the cluster of RAY_ADDRESS \(auto\) did not answer: Exc",
        ),
        ("", "the local Ray did not answer: Exception: slow; is the machine overloaded"),
    ],
)
def test_a_ray_that_does_not_start_is_an_error_of_one_line(monkeypatch, address, message):
    """Ray raises bare exceptions where a machine is overloaded."""

    def init(**_):
        raise Exception("slow\nand more")

    monkeypatch.setattr("bcl_ray.ray_runtime.connection.ray.is_initialized", lambda: False)
    monkeypatch.setattr("bcl_ray.ray_runtime.connection.ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(OSError, match=message), connected():
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1", "[::1]:1"])
def test_an_address_at_which_nothing_listens_is_an_error_at_once(monkeypatch, address):
    monkeypatch.setattr("bcl_ray.ray_runtime.connection.ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = rf"^the cluster of RAY_ADDRESS \({re.escape(address)}\) did not answer: .*is it up\?"
    with pytest.raises(TransientError, match=message), connected():
        pass


def test_the_address_of_a_dashboard_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr("bcl_ray.ray_runtime.connection.ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9600")
    message = r"RAY_ADDRESS \(http://127.0.0.1:9600\) is a dashboard's, .*bcl-ray submit train"
    with pytest.raises(UserError, match=message), connected():
        pass


def test_hardware_is_described_by_its_kind():
    node = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H200": 1.0}
    assert Resources(16, 2, 1.0, (node, node)).described == "2 GPUs (H200), 16 CPUs"
    assert Resources(8, 1, 1.0, ({"CPU": 8.0, "GPU": 1.0},)).described == (
        "1 GPU (unknown kind), 8 CPUs"
    )
    assert Resources(4, 0, 1.0, ({"CPU": 2.0}, {"CPU": 2.0})).described == "4 CPUs"
    assert re.fullmatch(r"2 CPUs \(.+\)", Resources(2, 0, 1.0, ({"CPU": 2.0},)).described)
