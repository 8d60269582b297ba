"""Files for Kubernetes with the KubeRay operator: a Kustomize base with three overlays.

The overlay `gpu` has a cluster that stays, and jobs on clusters of their own; `gpu-queue` has the
same jobs under Kueue; `kind` has a small training on one machine.
"""

import shlex
from collections.abc import Iterable
from urllib.parse import urlsplit

from bcl_ray.experiment.metric_names import WORKER_RATES
from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.entrypoints import WITHOUT_WORKERS, command_names, entrypoint, job_name
from bcl_ray.ops.manifests.groups import max_nodes_variable, worker_groups
from bcl_ray.ops.manifests.job_sections import Jobs
from bcl_ray.ops.manifests.policies import policy_values
from bcl_ray.ops.manifests.templating import render_template
from bcl_ray.tracking import mlflow_server

KIND = "overlays/kind"
# What differs on the one machine of KIND.
SMALL = {"cpus": 1, "memory_gib": 3, "scratch_gib": 5}
JOB = {
    "recipe": "digits_lt",
    "run": "digits-lt-1",
    "workers": 2,
    "overrides": (),
    "keep_minutes": 1,  # the machine has no room for two clusters
}
JOBS = Jobs(
    shard="digits --profile exponential --imbalance-factor 50",
    predict="file:///shared/shards/digits_lt",
)
STORE = {"uri": "file:///shared", "secret": None, "sources": (), "storage_gib": 20}
KUBERNETES: dict[str, object] = {
    "steady_selector": {},
    "spot_selector": {},
    "services_selector": {},
    "spot_taint": None,
    "scratch_class": None,
    "storage_class": None,
}


def manifests(description: ClusterDescription) -> dict[str, str]:
    """Text of each file."""
    variants = {
        "base": description,
        "overlays/gpu": description.model_copy(update={"queue": None}),
        KIND: _on_one_machine(description),
    }
    if description.queue:
        variants["overlays/gpu-queue"] = description
    files: dict[str, str] = {}
    for folder, variant in variants.items():
        contents = _base(variant) if folder == "base" else _overlay(folder, variant)
        contents["kustomization.yaml"] = _kustomization(folder, contents, variant)
        files |= {f"{folder}/{file}": text for file, text in contents.items()}
    return dict(sorted(files.items())) | _policies(description)


def _on_one_machine(description: ClusterDescription) -> ClusterDescription:
    """The same cluster without GPUs, S3 and a queue; all pods mount a volume of the only node."""
    data = {**SMALL, "memory_gib": 2, "min_nodes": 0, "max_nodes": 1}
    gpu = {**SMALL, "gpus": 0, "steady_nodes": 1, "spot_nodes": 1}
    return description.model_copy(
        update={
            "head": description.head.model_copy(update=SMALL),
            "data": description.data.model_copy(update=data),
            "gpu": description.gpu.model_copy(update=gpu),
            "job": description.job.model_copy(update=JOB),
            "jobs": JOBS,
            "object_store": description.object_store.model_copy(update=STORE),
            "kubernetes": description.kubernetes.model_copy(update=KUBERNETES),
            "queue": None,
        }
    )


def _base(description: ClusterDescription) -> dict[str, str]:
    """Files that do not depend on the groups of nodes."""
    files = ["namespace.yaml", "serviceaccounts.yaml", "networkpolicies.yaml"]
    if description.tracking.uri is None:
        files += ["mlflow.yaml", "postgresql.yaml"]
    if description.head.redis:
        files.append("redis.yaml")
    if description.kubernetes.monitoring_namespace:
        files.append("monitoring.yaml")
    values = _values(description)
    return {file: render_template(f"kuberay/base/{file}", **values) for file in files}


def _overlay(folder: str, description: ClusterDescription) -> dict[str, str]:
    """Files that depend on the groups of nodes."""
    values, commands = _values(description), command_names(description)
    files = {f"jobs/{command}.yaml": ray_job(description, command) for command in commands}
    if folder == "overlays/gpu":
        files["raycluster.yaml"] = ray_cluster(description)
    if description.queue:
        files["localqueue.yaml"] = render_template("kuberay/overlays/localqueue.yaml", **values)
    if description.object_store.shared_folder:
        files["shared.yaml"] = render_template(
            "kuberay/overlays/shared.yaml", **values, one_node=folder == KIND
        )
    return files


def ray_cluster(description: ClusterDescription) -> str:
    """A cluster that stays, and grows from its head alone when jobs come."""
    groups = worker_groups(description)
    return render_template(
        "kuberay/overlays/raycluster.yaml",
        **_values(description),
        ray_name=description.name,
        autoscaled=True,
        groups=groups,
        max_nodes=max_nodes_variable(groups),
    )


def ray_job(description: ClusterDescription, command: str) -> str:
    """A job on a cluster of its own.

    Under Kueue the size of the cluster is fixed, unless `queue.elastic`.

    Args:
        description: The cluster.
        command: One of `entrypoints.COMMANDS`.
    """
    queue, store = description.queue, description.object_store
    groups = [] if command in WITHOUT_WORKERS else worker_groups(description)
    autoscaled = bool(groups) and (queue is None or queue.elastic)
    words = entrypoint(description, command, uri=store.uri, gpus=description.gpu.gpus)
    return render_template(
        "kuberay/overlays/jobs/job.yaml",
        **_values(description),
        ray_name=job_name(description, command),
        command=shlex.join(words),
        autoscaled=autoscaled,
        groups=groups,
        # A fixed size must be stated too: KubeRay makes every head look as if it had an autoscaler,
        # and drivers would believe that the cluster grows.
        max_nodes=max_nodes_variable(groups if autoscaled else []),
    )


def _kustomization(folder: str, files: Iterable[str], description: ClusterDescription) -> str:
    resources = sorted(file for file in files if not file.startswith("jobs/"))
    base = [] if folder == "base" else ["../../base"]
    template = f"{KIND}/kustomization.yaml" if folder == KIND else "kustomization.yaml"
    return render_template(
        f"kuberay/{template}", **_values(description), resources=[*base, *resources]
    )


def _policies(description: ClusterDescription) -> dict[str, str]:
    store = description.object_store
    if store.roles is None:
        return {}
    files = ("policies/head.json", "policies/worker.json", "policies/mlflow.json")
    return {file: render_template(f"kuberay/{file}", **policy_values(store)) for file in files}


def _values(description: ClusterDescription) -> dict[str, object]:
    """The fields of the description, and what follows from them."""
    domain = f"{description.name}.svc.cluster.local"
    database = f"postgresql://mlflow@postgresql.{domain}/mlflow"
    return {
        **vars(description),
        "mlflow_uri": description.tracking.uri or f"http://mlflow.{domain}:5000",
        "mlflow_settings": mlflow_server.SETTINGS,
        "mlflow_database": database,
        "mlflow_basic_auth": mlflow_server.basic_auth(database),
        "outside_ports": _outside_ports(description),
        "worker_rates": WORKER_RATES,
    }


def _outside_ports(description: ClusterDescription) -> list[int]:
    """Ports of the object store, of the servers that issue its credentials, and of MLflow."""
    ports = {443}
    for address in (description.object_store.endpoint, description.tracking.uri):
        if address:
            parts = urlsplit(address)
            ports.add(parts.port or (443 if parts.scheme == "https" else 80))
    return sorted(ports)
