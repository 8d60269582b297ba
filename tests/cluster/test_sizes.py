"""What is rendered for one machine fits into what docs/clusters/kubernetes.md says it needs."""

import re
from decimal import Decimal

import pytest

from tests.cluster.conftest import ROOT
from tests.cluster.rendered import documents, mlflow_server
from tests.cluster.test_kuberay import JOBS, kustomized  # noqa: F401  (a fixture)

README = " ".join((ROOT / "docs" / "clusters" / "kubernetes.md").read_text().split())
UNITS = {"": 1, "m": Decimal("0.001"), "Mi": 2**20, "Gi": 2**30}
GIB = 2**30


def number(quantity):
    digits, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()
    return Decimal(digits) * UNITS[unit]


def pod(spec, times=1):
    """CPUs, bytes of memory and of disk that so many pods ask for and may take."""
    amounts = []
    for kind in ("requests", "limits"):
        parts = [container["resources"][kind] for container in spec["containers"]]
        names = ("cpu", "memory", "ephemeral-storage")
        amounts.append([sum(number(part.get(name, 0)) for part in parts) for name in names])
    assert amounts[0] == amounts[1], "what is asked for is what may be taken"
    return [times * amount for amount in amounts[0]]


def cluster(spec):
    """A RayCluster at its largest, with the autoscaler that the operator puts beside the head."""
    head = spec["headGroupSpec"]["template"]["spec"]
    pods = [pod(head)]
    if spec["enableInTreeAutoscaling"]:
        pods.append(pod({"containers": [spec["autoscalerOptions"]]}))
    for group in spec["workerGroupSpecs"]:
        pods.append(pod(group["template"]["spec"], group["maxReplicas"]))
    return pods


def added(pods):
    return [sum(amounts) for amounts in zip(*pods, strict=True)]


def job(file):
    (found,) = (one for one in documents(file.read_text()) if one["kind"] == "RayJob")
    spec = found["spec"]
    submitter = pod(spec["submitterPodTemplate"]["spec"])
    return added([submitter, *cluster(spec["rayClusterSpec"])])


def services(found):
    pods = [one["spec"]["template"]["spec"] for one in found if "template" in one.get("spec", {})]
    assert [spec["containers"][0]["name"] for spec in pods] == ["mlflow", "postgresql", "account"]
    return added([pod(spec) for spec in pods])


def test_on_kind_there_is_one_cluster_at_a_time(kustomized):  # noqa: F811
    kinds = [found["kind"] for found in kustomized["kind"]]
    assert "RayCluster" not in kinds
    assert "RayJob" not in kinds
    for file in JOBS.glob("*.yaml"):
        (spec,) = (one["spec"] for one in documents(file.read_text()) if one["kind"] == "RayJob")
        assert spec["ttlSecondsAfterFinished"] == 60


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda file: file.stem)
def test_kind_needs_no_more_than_the_readme_says(kustomized, file):  # noqa: F811
    """Head, workers, autoscaler and submitter of a job, and all services."""
    cpus, memory, disk = added([services(kustomized["kind"]), job(file)])
    said = re.search(r"pods ask for ([\d.]+) CPUs, ([\d.]+) GiB of memory and (\d+) GiB", README)
    assert cpus <= Decimal(said[1])
    assert memory / GIB <= Decimal(said[2])
    assert disk / GIB <= Decimal(said[3])
    if file.stem == "train":
        assert [float(cpus), float(memory / GIB), float(disk / GIB)] == [
            float(text) for text in said.groups()
        ]


def test_the_readme_leaves_room_for_kubernetes_itself():
    asked = [
        float(text) for text in re.search(r"ask for ([\d.]+) CPUs, ([\d.]+) GiB", README).groups()
    ]
    needed = [float(text) for text in re.search(r"Needs (\d+) CPUs and (\d+) GiB", README).groups()]
    # KubeRay's operator asks for 0.1 CPUs and 0.5 GiB; Kubernetes on one node for 1 and 0.3.
    assert needed[0] >= asked[0] + 1.1
    assert needed[1] >= asked[1] + 0.8


def test_mlflow_has_on_kind_the_memory_that_was_measured(description, kustomized):  # noqa: F811
    (found,) = (one for one in kustomized["kind"] if one["kind"] == "Deployment")
    (server,) = found["spec"]["template"]["spec"]["containers"]
    measured = mlflow_server(description)["resources"]["limits"]["memory"]
    assert server["resources"]["limits"]["memory"] == measured
