"""How many trials run at once, and how many CPUs for data tasks each of them may use."""

import math

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.amounts import TOLERANCE
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime.capacity import uses_gpus, worker_capacity
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.runs.budget import budget

DRIVER_BYTES = 1 << 30  # of a trial's driver, beside its workers (measured 2026-11: 0.7 GiB)


def trial_capacity(
    experiment: Experiment, manifest: Manifest, resources: Resources, driver_bytes: float
) -> int:
    """The largest number of trials that fit on a cluster at once, with their data tasks.

    Args:
        experiment: Experiment of a trial.
        manifest: Manifest of the trial's data.
        resources: Resources of the cluster; for one that grows, those of its largest size.
        driver_bytes: Memory of the node on which the drivers of all trials run.

    Raises:
        ValueError: Not even one trial fits.
    """
    scale = experiment.scale
    workers, per_worker = scale.min_workers, {"CPU": scale.cpus_per_worker}
    if uses_gpus(experiment, resources):
        per_worker["GPU"] = scale.gpus_per_worker
    data = experiment.min_data_cpus
    limits = {
        "CPUs": resources.cpus / (workers * scale.cpus_per_worker + data),
        "memory for their drivers": driver_bytes / DRIVER_BYTES,
    }
    if resources.limited:
        limits["nodes"] = worker_capacity(resources.nodes, per_worker) / workers
    if not resources.grows:
        store_bytes = budget(experiment, manifest, None).store_bytes
        limits["object store"] = resources.store_bytes / store_bytes if store_bytes else math.inf
    if "GPU" in per_worker:
        limits["GPUs"] = resources.gpus / (workers * scale.gpus_per_worker)
    scarcest = min(limits, key=lambda name: limits[name])
    count = math.floor(limits[scarcest] + TOLERANCE)
    if count < 1:
        amounts = ", ".join(f"{amount:g} {name}" for name, amount in per_worker.items())
        raise UserError(
            f"the cluster has no room for one trial, for lack of {scarcest}: it needs "
            f"{scale.shown_workers} of {amounts}, and {data:g} CPUs for data; lower "
            "--workers-per-trial or scale.cpus_per_worker"
        )
    return count


def data_cpus(experiment: Experiment, cpus: float, trials: int) -> float:
    """An equal share of the cluster's CPUs for the data tasks of one of several trials."""
    scale = experiment.scale
    if scale.data_cpus is not None:
        return scale.data_cpus
    left = cpus / trials - scale.max_workers * scale.cpus_per_worker
    tasks = math.floor(left / scale.cpus_per_data_task + TOLERANCE)
    return max(tasks, 1) * scale.cpus_per_data_task
