"""Files for `ray up` on EC2: the cluster's configuration, and the policies of its IAM roles."""

import re

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.doctor.gpus import FIRST_DRIVER
from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.groups import max_nodes_variable, worker_groups
from bcl_ray.ops.manifests.policies import policy_values
from bcl_ray.ops.manifests.templating import render_template
from bcl_ray.tracking import mlflow_server

CUDA = 13  # of PyTorch in constraints.txt
MIN_DRIVER = FIRST_DRIVER[CUDA]
ECR = re.compile(r"(?P<host>\d+\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?)/")
FILES = ("cluster.yaml", "policies/head.json", "policies/worker.json")


def ray_up(description: ClusterDescription) -> dict[str, str]:
    """Text of each of FILES.

    Raises:
        ValueError: The description has no section aws or no instance profile, or its files are not
            in S3.
    """
    _check(description)
    store = description.object_store
    groups = worker_groups(description)
    values = {
        **vars(description),
        **policy_values(store),
        "groups": groups,
        "environment": {
            "RAY_AUTH_MODE": "token",
            "MLFLOW_TRACKING_URI": description.tracking.uri or "http://127.0.0.1:5000",
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(description.job.notice_seconds),
            **store.environment,
            "BCL_RAY_MAX_NODES": max_nodes_variable(groups),
        },
        "registries": _registries(description),
        "mlflow_settings": mlflow_server.SETTINGS,
        "cuda": CUDA,
        "min_driver": MIN_DRIVER,
    }
    return {file: render_template(f"aws/{file}", **values) for file in FILES}


def _check(description: ClusterDescription) -> None:
    store = description.object_store
    if description.aws is None:
        raise UserError("the description has no section aws: add aws.security_group_ids")
    if not store.instance_profile:
        raise UserError(
            "object_store.instance_profile is missing: nodes need an IAM instance profile for the "
            "object store, because files must not hold keys"
        )
    if not store.uri.startswith("s3://"):
        raise UserError(
            f"object_store.uri ({store.uri}) must be s3://, because nodes do not share a folder"
        )


def _registries(description: ClusterDescription) -> dict[str, str]:
    """Regions of the ECR registries that have the images, by host."""
    images = (description.image.cpu, description.image.gpu)
    matches = [match for image in images if (match := ECR.match(image))]
    return {match["host"]: match["region"] for match in matches}
