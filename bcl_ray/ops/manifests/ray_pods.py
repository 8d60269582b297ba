"""Ray's pods: head, workers, and the one that submits a job."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.pods import (
    CLUSTER,
    HEAD_ACCOUNT,
    ROLE,
    SHARED_CLAIM,
    WORKER_ACCOUNT,
    Plain,
    container_security,
    pod,
    resources,
    shared_path,
    store_secret,
    store_variables,
    tracking_secret,
    tracking_uri,
    variables,
)
from bcl_ray.ops.manifests.sections import GroupSection

MARKET = "bcl-ray.io/market"  # a Ray node label: steady or spot; rank 0 wants steady
SLACK = 30  # seconds from the last word of a pod's hook to its end
SCRATCH = "ray-logs"  # KubeRay's own name, by which its autoscaler writes to the volume too


def store_bytes(group: GroupSection) -> str:
    """Of the object store: a little less than the shared memory that holds it."""
    return str(_shm_gib(group) * 2**30 * 9 // 10)


def _shm_gib(group: GroupSection) -> int:
    return max(1, group.memory_gib // 3)


def ray_pod(
    description: ClusterDescription,
    cluster: str,
    role: str,
    group: GroupSection,
    *,
    spot: bool = False,
) -> Plain:
    """Template of a pod of Ray.

    Args:
        cluster: name of its RayCluster or RayJob.
        role: of RAY_ROLES.
        group: its size.
        spot: on spot capacity.
    """
    notice, is_head = description.job.notice_seconds, role == "head"
    gpus = description.gpu.gpus if role in ("steady", "spot") else 0
    volumes, mounts = _volumes(description, group)
    # Of nodes that lend their own disk, the scheduler takes those that have it.
    disk = 0 if description.kubernetes.scratch_class else f"{group.scratch_gib + 2}Gi"
    more = {"ephemeral-storage": disk, "nvidia.com/gpu": gpus}
    container = {
        "name": "ray-head" if is_head else "ray-worker",
        "image": description.image.gpu if gpus else description.image.cpu,
        "env": [*variables(_environment(description, role)), *tracking_secret(description)],
        **store_secret(description),
        "resources": resources(group.cpus, f"{group.memory_gib}Gi", **more),
        "securityContext": container_security(),
        "lifecycle": {
            "preStop": {
                "exec": {
                    "command": ["bcl-ray-stop-jobs" if is_head else "bcl-ray-leave", str(notice)]
                }
            }
        },
        "volumeMounts": mounts,
    }
    if is_head:
        container["ports"] = [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ]
    keep = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    kubernetes = description.kubernetes
    return {
        "metadata": {
            "labels": {ROLE: role, CLUSTER: cluster},
            **({"annotations": keep} if role in ("head", "steady") else {}),
        },
        "spec": {
            **pod(
                description,
                [container],
                account=HEAD_ACCOUNT if is_head else WORKER_ACCOUNT,
                selector=kubernetes.spot_selector if spot else kubernetes.steady_selector,
            ),
            "automountServiceAccountToken": is_head,  # it starts and ends pods
            "restartPolicy": "Never",  # autoscaler v2 replaces pods, and so does KubeRay
            "terminationGracePeriodSeconds": notice + SLACK,
            **_tolerations(description, gpus=gpus, spot=spot),
            "volumes": volumes,
        },
    }


def _volumes(
    description: ClusterDescription, group: GroupSection
) -> tuple[list[Plain], list[Plain]]:
    """Volumes, and where they are mounted: shared memory, /tmp, and files that all share."""
    volumes: list[Plain] = [
        {
            "name": "shared-mem",  # KubeRay's own name, so that it adds none
            "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shm_gib(group)}Gi"},
        },
        {"name": SCRATCH, **_scratch(description, group)},
    ]
    mounts: list[Plain] = [
        {"name": "shared-mem", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": SCRATCH, "mountPath": "/tmp", "subPath": "tmp"},  # noqa: S108
        {"name": SCRATCH, "mountPath": "/tmp/ray"},  # noqa: S108
    ]
    if shared_path(description):
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": SHARED_CLAIM}})
        mounts.append({"name": "shared", "mountPath": shared_path(description)})
    return volumes, mounts


def _scratch(description: ClusterDescription, group: GroupSection) -> Plain:
    size, storage_class = f"{group.scratch_gib}Gi", description.kubernetes.scratch_class
    if storage_class is None:
        return {"emptyDir": {"sizeLimit": size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _environment(description: ClusterDescription, role: str) -> dict[str, str]:
    found = {"MLFLOW_TRACKING_URI": tracking_uri(description), **store_variables(description)}
    if role == "head":  # what a job's supervisor does when the job is stopped
        found["RAY_JOB_STOP_SIGNAL"] = "SIGINT"
        found["RAY_JOB_STOP_WAIT_TIME_S"] = str(description.job.notice_seconds)
    return found


def _tolerations(description: ClusterDescription, *, gpus: int, spot: bool) -> Plain:
    taint = description.kubernetes.spot_taint
    tolerations: list[Plain] = []
    if gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if spot and taint:
        tolerations.append({"key": taint, "operator": "Exists"})
    return {"tolerations": tolerations} if tolerations else {}


def submitter(description: ClusterDescription, cluster: str) -> Plain:
    """The pod that submits the job and shows its log; KubeRay gives it its command."""
    container = {
        "name": "ray-job-submitter",
        "image": description.image.cpu,
        "resources": resources("200m", "512Mi"),
        "securityContext": container_security(),
    }
    return {
        "metadata": {"labels": {ROLE: "submitter", CLUSTER: cluster}},
        "spec": {**pod(description, [container]), "restartPolicy": "Never"},
    }
