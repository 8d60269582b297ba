"""Files for Kubernetes with the KubeRay operator: a Kustomize base with three overlays.

The overlay `gpu` has a cluster that stays, and jobs on clusters of their own; `gpu-queue` has the
same jobs under Kueue; `kind` has a small training on one machine.
"""

import shlex
from collections.abc import Iterable
from urllib.parse import urlsplit

import yaml

from bcl_ray.experiment.metric_names import WORKER_RATES
from bcl_ray.ops.manifests import rules
from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.entrypoints import WITHOUT_WORKERS, command_names, entrypoint, job_name
from bcl_ray.ops.manifests.groups import max_nodes_variable, worker_groups
from bcl_ray.ops.manifests.one_machine import on_one_machine
from bcl_ray.ops.manifests.policies import policy_values
from bcl_ray.ops.manifests.templating import render_template
from bcl_ray.tracking import mlflow_server

# The loader written in C is ten times as fast.
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The templates of kustomizations that are more than a list of files.
KUSTOMIZATIONS = {"overlays/kind": "kuberay/overlays/kind/kustomization.yaml"}


def manifests(description: ClusterDescription) -> dict[str, str]:
    """Text of each file; the objects have been checked.

    Raises:
        ValueError: An object breaks a rule of KubeRay, Kueue or `pod_rules`.
    """
    variants = {
        "base": description,
        "overlays/gpu": description.model_copy(update={"queue": None}),
        "overlays/kind": on_one_machine(description),
    }
    if description.queue:
        variants["overlays/gpu-queue"] = description
    files: dict[str, str] = {}
    for folder, variant in variants.items():
        contents = _base(variant) if folder == "base" else _overlay(folder, variant)
        for text in contents.values():
            rules.check(yaml.load_all(text, Loader=YamlLoader))
        contents["kustomization.yaml"] = _kustomization(folder, contents, variant)
        files |= {f"{folder}/{file}": text for file, text in contents.items()}
    return dict(sorted(files.items())) | _policies(description)


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
        one_node = folder == "overlays/kind"
        files["shared.yaml"] = render_template(
            "kuberay/overlays/shared.yaml", **values, one_node=one_node
        )
    return files


def ray_cluster(description: ClusterDescription) -> str:
    """A cluster that stays, and grows from its head alone when jobs come."""
    groups = worker_groups(description)
    return render_template(
        "kuberay/overlays/raycluster.yaml",
        **_values(description),
        cluster_name=description.name,
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
        cluster_name=job_name(description, command),
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
    template = KUSTOMIZATIONS.get(folder, "kuberay/kustomization.yaml")
    return render_template(template, **_values(description), resources=[*base, *resources])


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
