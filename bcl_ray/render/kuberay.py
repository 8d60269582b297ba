"""RayCluster and RayJob for the KubeRay operator."""

import shlex
from typing import Any

from bcl_ray.render.description import Description, Group
from bcl_ray.render.growth import most_nodes
from bcl_ray.render.pods import (
    CLUSTER,
    REDIS_SECRET,
    ROLE,
    SHARED_CLAIM,
    TOKEN_SECRET,
    Plain,
    container_security,
    metadata,
    pod_security,
    resources,
    shared_path,
    store_secret,
    store_variables,
    tracking_secret,
    tracking_uri,
    variables,
)

MARKET = "bcl-ray.io/market"  # a Ray node label: steady or spot; rank 0 wants steady
NO_SECOND_TIME = ("env", "BCL_RAY_ON_MISTAKE=stop")  # see submit/own_job.py
QUEUE = "bcl-ray"  # the namespace's LocalQueue
SLACK = 30  # seconds from the last word of a pod's hook to its end


def ray_cluster(description: Description) -> Plain:
    """A standing cluster, which grows from its head alone as jobs come."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": metadata(description, description.name),
        "spec": _cluster_spec(description, description.name, fixed=False),
    }


def ray_job(description: Description) -> Plain:
    """One training on a cluster of its own; a cluster that fails is followed by another.

    With a queue the cluster's size is fixed, so that Kueue admits all of it or nothing, unless
    `queue.elastic`.
    """
    job, queue = description.job, description.queue
    name = job_name(description)
    found = metadata(description, name)
    if queue:
        found["labels"]["kueue.x-k8s.io/queue-name"] = QUEUE
        if queue.elastic:
            found["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    fixed = queue is not None and not queue.elastic
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": found,
        "spec": {
            "entrypoint": shlex.join(
                [
                    *NO_SECOND_TIME,
                    *entrypoint(
                        description, uri=description.object_store.uri, gpus=description.gpu.gpus
                    ),
                ]
            ),
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _submitter(description, name),
            "backoffLimit": job.retries,
            "preRunningDeadlineSeconds": job.wait_minutes * 60,
            "activeDeadlineSeconds": job.hours * 3600,
            "shutdownAfterJobFinishes": True,
            # Its logs stay this long; the autoscaler frees the other nodes when they are idle.
            "ttlSecondsAfterFinished": 60 if fixed else 3600,
            "rayClusterSpec": _cluster_spec(description, name, fixed=fixed),
        },
    }


def job_name(description: Description) -> str:
    """The RayJob's name."""
    return f"{description.name}-train"


def entrypoint(description: Description, *, uri: str, gpus: int) -> list[str]:
    """The command that trains, or goes on with, the description's run.

    Args:
        uri: above shards/ and runs/.
        gpus: of a training node; 0: workers train on CPUs.
    """
    job = description.job
    experiment = job.experiment()
    return [
        "bcl-ray",
        "train",
        job.recipe,
        *job.overrides,
        f"data.path={uri}/shards/{experiment.name}",
        f"tracking.runs={uri}/runs",
        f"tracking.run={job.run}",
        job.scale,
        f"scale.device={'cuda' if gpus else 'cpu'}",
        f"scale.wait_timeout={job.wait_minutes * 60}",
        "--restartable",
    ]


def disruption_budget(description: Description, cluster: str, role: str, pods: int) -> Plain:
    """Keeps the pods of a role through voluntary evictions.

    A RayCluster has no scale subresource, so that only a whole number of pods to keep is allowed.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(description, f"{cluster}-{role}"),
        "spec": {
            "minAvailable": pods,
            "selector": {"matchLabels": {CLUSTER: cluster, ROLE: role}},
        },
    }


def local_queue(description: Description) -> Plain:
    """The namespace's door to the administrators' ClusterQueue."""
    assert description.queue is not None
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": metadata(description, QUEUE),
        "spec": {"clusterQueue": description.queue.cluster_queue},
    }


def _cluster_spec(description: Description, cluster: str, *, fixed: bool) -> Plain:
    spec: Plain = {
        "rayVersion": description.ray_version,
        # Written out: without the mode the operator leaves the cluster open.
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "enableInTreeAutoscaling": not fixed,
    }
    if not fixed:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 300,
            "resources": resources("500m", "512Mi"),
            "securityContext": container_security(),
        }
    if description.head.redis:
        reference = {"name": REDIS_SECRET, "key": "password"}
        spec["gcsFaultToleranceOptions"] = {
            "backend": "redis",
            "redisAddress": f"redis.{description.name}.svc.cluster.local:6379",
            "redisPassword": {"valueFrom": {"secretKeyRef": reference}},
        }
    spec["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "rayStartParams": {
            "num-cpus": "0",  # drivers only
            "num-gpus": "0",
            "dashboard-host": "0.0.0.0",  # the token and the network policies guard it  # noqa: S104
            "object-store-memory": _store_bytes(description.head),
        },
        "template": _pod(description, cluster, "head", description.head),
    }
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] += variables(most_nodes(description, fixed=fixed))
    spec["workerGroupSpecs"] = _worker_groups(description, cluster, fixed=fixed)
    return spec


def _worker_groups(description: Description, cluster: str, *, fixed: bool) -> list[Plain]:
    data, gpu = description.data, description.gpu
    groups = [
        ("data", data, data.min_nodes, data.max_nodes, data.spot),
        ("steady", gpu, 0, gpu.steady_nodes, False),
        ("spot", gpu, 0, gpu.spot_nodes, True),
    ]
    return [
        {
            "groupName": role,
            "replicas": most if fixed else least,
            "minReplicas": most if fixed else least,
            "maxReplicas": most,
            "labels": {MARKET: "spot" if spot else "steady"},
            "rayStartParams": {"object-store-memory": _store_bytes(group)},
            "template": _pod(description, cluster, role, group, spot=spot),
        }
        for role, group, least, most, spot in groups
        if most
    ]


def _store_bytes(group: Group) -> str:
    """Of the object store: a little less than the shared memory that holds it."""
    return str(_shm_gib(group) * 2**30 * 9 // 10)


def _shm_gib(group: Group) -> int:
    return max(1, group.memory_gib // 3)


def _pod(
    description: Description, cluster: str, role: str, group: Group, *, spot: bool = False
) -> Plain:
    notice = description.job.notice_seconds
    gpus = description.gpu.gpus if role in ("steady", "spot") else 0
    volumes: list[Plain] = [
        {
            "name": "shared-mem",  # KubeRay's own name, so that it adds none
            "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shm_gib(group)}Gi"},
        }
    ]
    mounts: list[Plain] = [{"name": "shared-mem", "mountPath": "/dev/shm"}]  # noqa: S108
    if shared_path(description):
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": SHARED_CLAIM}})
        mounts.append({"name": "shared", "mountPath": shared_path(description)})
    leave = "bcl-ray-stop-jobs" if role == "head" else "bcl-ray-leave"
    container = {
        "name": f"ray-{'head' if role == 'head' else 'worker'}",
        "image": description.image.gpu if gpus else description.image.cpu,
        "env": [*variables(_environment(description, role)), *tracking_secret(description)],
        **store_secret(description),
        "resources": resources(group.cpus, f"{group.memory_gib}Gi", gpus=gpus),
        "securityContext": container_security(),
        "lifecycle": {"preStop": {"exec": {"command": [leave, str(notice)]}}},
        "volumeMounts": mounts,
    }
    if role == "head":
        container["ports"] = [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ]
    keep = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return {
        "metadata": {
            "labels": {ROLE: role, CLUSTER: cluster},
            **({"annotations": keep} if role in ("head", "steady") else {}),
        },
        "spec": {
            # The head's may start and end pods, the others' may not.
            "serviceAccountName": "ray-head" if role == "head" else "ray",
            "automountServiceAccountToken": role == "head",
            "restartPolicy": "Never",  # autoscaler v2 replaces pods, and so does KubeRay
            "terminationGracePeriodSeconds": notice + SLACK,
            "securityContext": pod_security(),
            **_placement(description, gpus=gpus, spot=spot),
            **_pull_secret(description),
            "containers": [container],
            "volumes": volumes,
        },
    }


def _environment(description: Description, role: str) -> dict[str, str]:
    found = {"MLFLOW_TRACKING_URI": tracking_uri(description), **store_variables(description)}
    if role == "head":  # what a job's supervisor does when the job is stopped
        found["RAY_JOB_STOP_SIGNAL"] = "SIGINT"
        found["RAY_JOB_STOP_WAIT_TIME_S"] = str(description.job.notice_seconds)
    return found


def _placement(description: Description, *, gpus: int, spot: bool) -> Plain:
    kubernetes = description.kubernetes
    selector = kubernetes.spot_selector if spot else kubernetes.steady_selector
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if not gpus:
        tolerations = []
    if spot and kubernetes.spot_taint:
        tolerations.append({"key": kubernetes.spot_taint, "operator": "Exists"})
    return {
        **({"nodeSelector": dict(selector)} if selector else {}),
        **({"tolerations": tolerations} if tolerations else {}),
    }


def _pull_secret(description: Description) -> Plain:
    secret = description.image.pull_secret
    return {"imagePullSecrets": [{"name": secret}]} if secret else {}


def _submitter(description: Description, cluster: str) -> Plain:
    """The pod that submits the job and shows its log; KubeRay gives it its command."""
    container: dict[str, Any] = {
        "name": "ray-job-submitter",
        "image": description.image.cpu,
        "resources": resources("500m", "512Mi"),
        "securityContext": container_security(),
    }
    return {
        "metadata": {"labels": {ROLE: "submitter", CLUSTER: cluster}},
        "spec": {
            "serviceAccountName": "ray",
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "securityContext": pod_security(),
            **_pull_secret(description),
            "containers": [container],
        },
    }
