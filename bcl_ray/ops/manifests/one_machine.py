"""A description reduced to one machine, for the overlay `kind`."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.jobs import Jobs

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


def on_one_machine(description: ClusterDescription) -> ClusterDescription:
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
