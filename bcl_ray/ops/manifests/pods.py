"""What every pod shares: labels, security, environment, storage."""

from typing import Any

from bcl_ray.ops.manifests.description import ClusterDescription

Plain = dict[str, Any]  # a Kubernetes object, or part of one

ROLE = "bcl-ray.io/role"  # RAY_ROLES, submitter, mlflow, mlflow-account, postgresql, redis
CLUSTER = "bcl-ray.io/cluster"  # the RayCluster's or the RayJob's name
CLIENT = "bcl-ray.io/client"  # "true": pods of others that may reach Ray's and MLflow's ports
RAY_ROLES = ("head", "data", "steady", "spot")
USER = 1000  # of cluster/Dockerfile
# Service accounts: who may start pods, who trains, who keeps artifacts, who may do nothing.
HEAD_ACCOUNT, WORKER_ACCOUNT, MLFLOW_ACCOUNT, PLAIN_ACCOUNT = (
    "ray-head",
    "ray-worker",
    "mlflow",
    "submitter",
)
TOKEN_SECRET, DATABASE_SECRET, REDIS_SECRET = "ray-token", "postgresql", "redis"
SHARED_CLAIM = "shared"
MLFLOW_PORT, POSTGRESQL_PORT, REDIS_PORT, DASHBOARD_PORT = 5000, 5432, 6379, 8265


def metadata(
    description: ClusterDescription, name: str, role: str | None = None, **more: Any
) -> Plain:
    """Metadata of an object in the cluster's namespace."""
    labels = {ROLE: role} if role else {}
    return {
        "name": name,
        "namespace": description.name,
        "labels": {"app.kubernetes.io/part-of": description.name, **labels},
        **more,
    }


def pod_security(user: int = USER) -> Plain:
    """As the 'restricted' Pod Security Standard asks."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod(
    description: ClusterDescription,
    containers: list[Plain],
    *,
    account: str | None = PLAIN_ACCOUNT,
    selector: dict[str, str] | None = None,
    user: int = USER,
    **more: Any,
) -> Plain:
    """Specification of a pod that runs beside Ray.

    Args:
        account: its service account; its token is mounted nowhere.
        selector: labels of its nodes; None: those for services.
    """
    selector = description.kubernetes.services_selector if selector is None else selector
    secret = description.image.pull_secret
    return {
        **({"serviceAccountName": account} if account else {}),
        "automountServiceAccountToken": False,
        "securityContext": pod_security(user),
        **({"nodeSelector": dict(selector)} if selector else {}),
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
        "containers": containers,
        **more,
    }


def container_security(*, read_only: bool = False) -> Plain:
    """No privileges, and none to be gained."""
    security: Plain = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return security | ({"readOnlyRootFilesystem": True} if read_only else {})


def resources(cpus: int | str, memory: str, **more: int | str) -> Plain:
    """Requests that equal limits, so that no neighbour takes what Ray counts on.

    Args:
        more: other resources by name; of 0 there is none.
    """
    amounts: Plain = {"cpu": str(cpus), "memory": memory}
    amounts |= {name: str(amount) for name, amount in more.items() if amount}
    return {"limits": amounts, "requests": dict(amounts)}


def secret_variable(name: str, secret: str, key: str) -> Plain:
    """An environment variable whose value only the cluster knows."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def variables(values: dict[str, str]) -> list[Plain]:
    """Environment variables in the form of a container."""
    return [{"name": name, "value": value} for name, value in values.items()]


def store_variables(description: ClusterDescription) -> dict[str, str]:
    """The object store, as boto3 and pyarrow find it; identity comes from elsewhere."""
    store = description.object_store
    if not store.uri.startswith("s3://"):
        return {}
    return {
        "AWS_REGION": store.region,
        **({"AWS_ENDPOINT_URL": store.endpoint} if store.endpoint else {}),
        "AWS_REQUEST_CHECKSUM_CALCULATION": store.checksums,
    }


def store_secret(description: ClusterDescription) -> Plain:
    """`envFrom` of a container, where the object store's keys are in a secret."""
    secret = description.object_store.secret
    return {"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}


def tracking_secret(description: ClusterDescription) -> list[Plain]:
    """Environment variables by which MLflow's client says who it is."""
    secret = description.tracking.secret
    names = {"MLFLOW_TRACKING_USERNAME": "username", "MLFLOW_TRACKING_PASSWORD": "password"}
    return [secret_variable(name, secret, key) for name, key in names.items()] if secret else []


def shared_path(description: ClusterDescription) -> str | None:
    """Where pods mount the shared volume; none where files are in an object store."""
    uri = description.object_store.uri
    return uri.removeprefix("file://") if uri.startswith("file://") else None


def tracking_uri(description: ClusterDescription) -> str:
    """The MLflow server as pods reach it."""
    return description.tracking.uri or f"http://mlflow.{description.name}.svc.cluster.local:5000"


def service(
    description: ClusterDescription, role: str, port: int, *, headless: bool = False
) -> Plain:
    """The name by which others find the pods of a role."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(description, role, role),
        "spec": {
            "type": "ClusterIP",
            **({"clusterIP": "None"} if headless else {}),
            "selector": {ROLE: role},
            "ports": [{"name": "http" if role == "mlflow" else role, "port": port}],
        },
    }
