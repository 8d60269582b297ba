"""Objects of rendered files."""

from typing import Any

import yaml

from bcl_ray.ops.manifests import ClusterDescription, kuberay, render


def documents(text: str) -> list[Any]:
    """The YAML documents of a text, without empty ones."""
    loaded = yaml.load_all(text, Loader=yaml.CSafeLoader)
    return [document for document in loaded if document]


def objects(description: ClusterDescription, file: str) -> list[Any]:
    """The objects of one file for Kubernetes."""
    return documents(render("kuberay", description)[file])


def mlflow_server(description: ClusterDescription) -> Any:
    """The container of the MLflow server."""
    deployment = objects(description, "base/mlflow.yaml")[0]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def ray_cluster(description: ClusterDescription) -> Any:
    """The cluster that stays."""
    return documents(kuberay.ray_cluster(description))[0]


def ray_job(description: ClusterDescription, kind: str = "train") -> Any:
    """The RayJob of a command."""
    return documents(kuberay.ray_job(description, kind))[0]
