"""What a namespace has before anything runs in it: accounts, and the shared volume."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.pods import (
    HEAD_ACCOUNT,
    MLFLOW_ACCOUNT,
    PLAIN_ACCOUNT,
    SHARED_CLAIM,
    WORKER_ACCOUNT,
    Plain,
    metadata,
)


def namespace(description: ClusterDescription) -> Plain:
    """The namespace; Kubernetes refuses pods in it that ask for privileges."""
    labels = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": description.name, "labels": labels},
    }


def service_accounts(description: ClusterDescription) -> list[Plain]:
    """One for each kind of pod; the first three may use the object store, each as its IAM role."""
    roles = description.object_store.roles
    arns = {
        HEAD_ACCOUNT: roles and roles.head,
        WORKER_ACCOUNT: roles and roles.worker,
        MLFLOW_ACCOUNT: roles and roles.mlflow,
        PLAIN_ACCOUNT: None,
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                **metadata(description, name),
                **({"annotations": {"eks.amazonaws.com/role-arn": arn}} if arn else {}),
            },
            "automountServiceAccountToken": False,
        }
        for name, arn in arns.items()
    ]


def shared_claim(description: ClusterDescription, *, mode: str = "ReadWriteMany") -> Plain:
    """The volume of `object_store.uri: file://...`."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(description, SHARED_CLAIM),
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": f"{description.tracking.storage_gib}Gi"}},
        },
    }
