"""How many trials run at once, and what of the cluster each of them may use."""

import math

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime.connection import Resources, uses_gpus
from bcl_ray.ray_runtime.elastic import places
from bcl_ray.runs.budget import budget

DRIVER_BYTES = 1 << 30  # of a trial's driver, beside its workers (measured 2026-11: 0.7 GiB)


def slots(
    experiment: Experiment, manifest: Manifest, resources: Resources, driver_bytes: float
) -> int:
    """The most trials that fit on a cluster at once, each with its workers and its data tasks.

    Args:
        experiment: of a trial.
        manifest: its data.
        resources: of the cluster; of one that grows, the most that it can have.
        driver_bytes: memory of the node that holds the trials' drivers.

    Raises:
        ValueError: there is no room for one.
    """
    scale = experiment.scale
    workers, needs = scale.min_workers, {"CPU": scale.cpus_per_worker}
    if uses_gpus(experiment, resources):
        needs["GPU"] = scale.gpus_per_worker
    data = experiment.least_data_cpus
    limits = {
        "CPUs": resources.cpus / (workers * scale.cpus_per_worker + data),
        "memory for their drivers": driver_bytes / DRIVER_BYTES,
    }
    if resources.limited:
        limits["nodes"] = places(resources.nodes, needs) / workers
    if not resources.grows:
        wanted = budget(experiment, manifest, None).store_bytes
        limits["object store"] = resources.store_bytes / wanted if wanted else math.inf
    if "GPU" in needs:
        limits["GPUs"] = resources.gpus / (workers * scale.gpus_per_worker)
    scarce = min(limits, key=lambda name: limits[name])
    count = math.floor(limits[scarce] + 1e-9)
    if count < 1:
        raise UserError(
            f"the cluster has no room for one trial, for lack of {scarce}: it needs "
            f"{scale.shown_workers} of {', '.join(f'{n:g} {name}' for name, n in needs.items())}, "
            f"and {data:g} CPUs for data; lower --workers-per-trial or scale.cpus_per_worker"
        )
    return count


def data_cpus(experiment: Experiment, cpus: float, trials: int) -> float:
    """CPUs that one of several trials may use for data tasks: as many as the others."""
    scale = experiment.scale
    if scale.data_cpus is not None:
        return scale.data_cpus
    left = cpus / trials - scale.max_workers * scale.cpus_per_worker
    tasks = math.floor(left / scale.cpus_per_data_task + 1e-9)
    return max(tasks, 1) * scale.cpus_per_data_task
