"""How far a cluster can grow: rendered files write what drivers read."""

import pytest
import yaml

from bcl_ray.ops.manifests import read, render
from bcl_ray.ray_runtime.node_groups import MARKET, VARIABLE, NodeGroup, from_environment, to_text
from tests.cluster.conftest import ROOT
from tests.cluster.rendered import ray_cluster, ray_job


def test_groups_come_back_as_they_were_written(monkeypatch):
    groups = (NodeGroup(2, {"CPU": 7.0, "GPU": 1.0}, {"a": "b"}), NodeGroup(0, {"CPU": 3.0}))
    monkeypatch.setenv(VARIABLE, to_text(groups))
    assert from_environment() == groups


@pytest.mark.parametrize("text", ["", None])
def test_without_the_variable_there_is_no_answer(monkeypatch, text):
    monkeypatch.delenv(VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(VARIABLE, text)
    assert from_environment() is None


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "[3]",
        "[{}]",
        "nodes",
        '[{"nodes": -1, "resources": {}}]',
        '[{"nodes": 1, "resources": {"CPU": "x"}}]',
        '[{"nodes": 1, "resources": [1]}]',
        '[{"nodes": 1, "resources": {}, "more": 1}]',
    ],
)
def test_other_text_is_refused_with_an_example(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{VARIABLE} .*must be groups of nodes as JSON, such as"):
        from_environment()


def head_variable(spec):
    """The variable of the head of a rendered cluster."""
    (container,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (value,) = (item["value"] for item in container["env"] if item["name"] == VARIABLE)
    return value


def test_rendered_heads_know_all_groups_but_the_head(monkeypatch):
    description = read(ROOT / "cluster" / "cluster.yaml")
    monkeypatch.setenv(VARIABLE, head_variable(ray_cluster(description)["spec"]))
    data, steady, spot = from_environment()
    assert (data.nodes, data.resources) == (description.data.max_nodes, {"CPU": 15})
    gpu = {"CPU": description.gpu.cpus, "GPU": description.gpu.gpus}
    assert steady == NodeGroup(description.gpu.steady_nodes, gpu, {MARKET: "steady"})
    assert spot == NodeGroup(description.gpu.spot_nodes, gpu, {MARKET: "spot"})


def test_a_rendered_cluster_of_fixed_size_says_that_it_does_not_grow(monkeypatch):
    description = read(ROOT / "cluster" / "cluster.yaml")
    spec = ray_job(description)["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False
    monkeypatch.setenv(VARIABLE, head_variable(spec))
    assert from_environment() == ()


def test_rendered_nodes_have_the_label_by_which_drivers_know_their_market():
    description = read(ROOT / "cluster" / "cluster.yaml")
    on_kubernetes = ray_cluster(description)["spec"]["workerGroupSpecs"]
    on_ec2 = yaml.safe_load(render("aws", description)["cluster.yaml"])["available_node_types"]
    labels = [group["labels"] for group in (*on_kubernetes, *on_ec2.values())]
    assert {key for each in labels for key in each} == {MARKET}
