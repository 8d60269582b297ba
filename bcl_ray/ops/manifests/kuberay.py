"""RayCluster and RayJob for the KubeRay operator."""

import shlex

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.growth import most_nodes
from bcl_ray.ops.manifests.jobs import WITHOUT_WORKERS, entrypoint, job_name
from bcl_ray.ops.manifests.pods import (
    CLUSTER,
    REDIS_SECRET,
    ROLE,
    TOKEN_SECRET,
    Plain,
    container_security,
    metadata,
    resources,
    variables,
)
from bcl_ray.ops.manifests.ray_pods import ray_pod, store_bytes, submitter
from bcl_ray.ray_runtime.node_groups import MARKET

NO_SECOND_TIME = ("env", "BCL_RAY_ON_MISTAKE=stop")  # see submit/own_job.py
QUEUE = "bcl-ray"  # the namespace's LocalQueue


def ray_cluster(description: ClusterDescription) -> Plain:
    """A standing cluster, which grows from its head alone as jobs come."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": metadata(description, description.name),
        "spec": _cluster_spec(description, description.name, autoscaled=True),
    }


def ray_job(description: ClusterDescription, kind: str = "train") -> Plain:
    """One job on a cluster of its own; a cluster that fails is followed by another.

    With a queue the cluster's size is fixed, so that Kueue admits all of it or nothing, unless
    `queue.elastic`.

    Args:
        kind: of `jobs.COMMANDS`.
    """
    job, queue = description.job, description.queue
    name = job_name(description, kind)
    found = metadata(description, name)
    if queue:
        found["labels"]["kueue.x-k8s.io/queue-name"] = QUEUE
        if queue.elastic:
            found["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    autoscaled, workers = queue is None or queue.elastic, kind not in WITHOUT_WORKERS
    uri, gpus = description.object_store.uri, description.gpu.gpus
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": found,
        "spec": {
            "entrypoint": shlex.join(
                [*NO_SECOND_TIME, *entrypoint(description, kind, uri=uri, gpus=gpus)]
            ),
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": submitter(description, name),
            "backoffLimit": job.retries,
            "preRunningDeadlineSeconds": job.wait_minutes * 60,
            "activeDeadlineSeconds": job.hours * 3600,
            "shutdownAfterJobFinishes": True,
            # The autoscaler frees the other nodes when they are idle, but a queue's never are.
            "ttlSecondsAfterFinished": job.keep_minutes * 60 if autoscaled else 60,
            "rayClusterSpec": _cluster_spec(
                description, name, autoscaled=autoscaled and workers, workers=workers
            ),
        },
    }


def disruption_budget(description: ClusterDescription, cluster: str, role: str, pods: int) -> Plain:
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


def local_queue(description: ClusterDescription) -> Plain:
    """The namespace's door to the administrators' ClusterQueue."""
    assert description.queue is not None
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "LocalQueue",
        "metadata": metadata(description, QUEUE),
        "spec": {"clusterQueue": description.queue.cluster_queue},
    }


def _cluster_spec(
    description: ClusterDescription, cluster: str, *, autoscaled: bool, workers: bool = True
) -> Plain:
    spec: Plain = {
        "rayVersion": description.ray_version,
        # Written out: without the mode the operator leaves the cluster open.
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "enableInTreeAutoscaling": autoscaled,
    }
    if autoscaled:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 300,
            "resources": resources("200m", "512Mi"),
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
            "object-store-memory": store_bytes(description.head),
        },
        "template": ray_pod(description, cluster, "head", description.head),
    }
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] += variables(most_nodes(description, fixed=not autoscaled))
    groups = _worker_groups(description, cluster, fixed=not autoscaled) if workers else []
    spec["workerGroupSpecs"] = groups
    return spec


def _worker_groups(description: ClusterDescription, cluster: str, *, fixed: bool) -> list[Plain]:
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
            "rayStartParams": {"object-store-memory": store_bytes(group)},
            "template": ray_pod(description, cluster, role, group, spot=spot),
        }
        for role, group, least, most, spot in groups
        if most
    ]
