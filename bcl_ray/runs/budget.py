"""What a run will need, worked out before anything starts."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.data.layout import split_layout
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine import container
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

SHARED = Path("/dev/shm")  # noqa: S108  where Ray keeps its object store
STORE_SHARE = 0.3  # of a node's memory, Ray's default for its object store
TASK_BYTES = 32 * 2**20  # of views; each task costs some 15 ms of Ray's time (measured 2026-11)


@dataclass(frozen=True)
class Budget:
    """A run in numbers.

    Args:
        steps_per_epoch: global batches per epoch; steps: of the whole run.
        images_per_epoch: training images per epoch, without an incomplete last batch.
        left_out: images of that last batch, others in each epoch.
        bytes_per_epoch: of the training split's shards, read once per epoch.
        batch_bytes: uint8 views of one worker's batch.
        lanes: of the epoch plan; the allowed numbers of workers divide them.
        worker_cpus: CPUs that all workers hold; data_cpus: CPUs left for data tasks, or None
            where the cluster's are unknown.
        store_bytes: object-store memory of all batches in flight, over all workers.
        resident_bytes: images that a worker's device holds, where they live there.
    """

    steps_per_epoch: int
    steps: int
    images_per_epoch: int
    left_out: int
    eval_images: int
    bytes_per_epoch: int
    batch_bytes: int
    lanes: int
    worker_cpus: float
    data_cpus: float | None
    store_bytes: int
    resident_bytes: int = 0


def budget(experiment: Experiment, manifest: Manifest, cpus: float | None) -> Budget:
    """Work out what a run needs.

    Args:
        experiment: the run.
        manifest: its data.
        cpus: CPUs of the whole cluster, or None when they are not known yet.

    Of an elastic run, it is what the fewest workers need.

    Raises:
        ValueError: the run cannot work: too few rows, or no CPU left for data.
    """
    plan = epoch_plan(experiment, manifest, 0)
    split = manifest.splits[experiment.data.train_split]
    batch, workers = experiment.optim.global_batch_size, experiment.scale.min_workers
    image_bytes = 3 * experiment.views.image_size**2 * (1 + experiment.num_contrastive)
    worker_cpus = workers * experiment.scale.cpus_per_worker
    data_cpus = _data_cpus(experiment, worker_cpus, cpus)
    streams = experiment.data.residency != "device"
    tasks = int(data_cpus / experiment.scale.cpus_per_data_task) if data_cpus else workers
    task_rows = max(split.row_group_rows, TASK_BYTES // image_bytes)
    open_rows = plan.lanes * split.row_group_rows + tasks * task_rows  # in every lane and task
    ahead = experiment.scale.prefetch_batches * batch
    return Budget(
        steps_per_epoch=plan.steps,
        steps=plan.steps * experiment.train.epochs,
        images_per_epoch=plan.steps * batch,
        left_out=split.rows - plan.steps * batch,
        eval_images=split_layout(experiment, manifest, "eval_split").rows,
        bytes_per_epoch=sum(shard.bytes for shard in split.shards),
        batch_bytes=image_bytes * batch // workers,
        lanes=plan.lanes,
        worker_cpus=worker_cpus,
        data_cpus=data_cpus,
        store_bytes=image_bytes * (min(split.rows, open_rows) + ahead) if streams else 0,
        resident_bytes=0 if streams else resident_bytes(experiment, manifest, workers),
    )


def resident_bytes(experiment: Experiment, manifest: Manifest, workers: int) -> int:
    """Images that a worker's device holds where they live there: its part of those evaluated."""
    trained, evaluated = (
        split_layout(experiment, manifest, option).rows for option in ("train_split", "eval_split")
    )
    return 3 * experiment.views.image_size**2 * (trained + -(-evaluated // workers))


def _data_cpus(experiment: Experiment, worker_cpus: float, cpus: float | None) -> float | None:
    if experiment.data.residency == "device":
        return 0.0
    if cpus is None:
        return experiment.scale.data_cpus
    left, scale = cpus - worker_cpus, experiment.scale
    needed = experiment.least_data_cpus
    if left < needed:
        raise UserError(
            f"scale.workers ({scale.min_workers}) x scale.cpus_per_worker "
            f"({scale.cpus_per_worker:g}) leave {max(left, 0):g} of {cpus:g} CPUs for data, which "
            f"needs {needed:g}: lower one of them, or scale.data_cpus and scale.cpus_per_data_task"
        )
    return scale.data_cpus or left


def check_store(wanted: Budget, store_bytes: float) -> None:
    """Refuse a run whose batches in flight do not fit in the object store.

    Raises:
        ValueError: naming what to lower.
    """
    if wanted.store_bytes > store_bytes:
        raise UserError(
            f"batches in flight need {wanted.store_bytes / 2**30:.1f} GiB of object store, the "
            f"cluster has {store_bytes / 2**30:.1f} GiB: lower scale.prefetch_batches, "
            "data.max_workers (fewer lanes) or views.image_size"
        )


def preflight(
    experiment: Experiment, manifest: Manifest, *, connected: bool = False
) -> tuple[Budget, float | None]:
    """What a run needs, and the object store of this machine where it is to run here.

    Args:
        experiment: the run.
        manifest: its data.
        connected: this process uses a cluster already, as a trial's does, and without RAY_ADDRESS.

    Raises:
        ValueError: the run cannot work.
        OSError: a file that an option names is not there.
    """
    if experiment.model.weights is not None:
        files.check_file(experiment.model.weights)
    if connected or os.environ.get("RAY_ADDRESS"):
        return budget(experiment, manifest, None), None
    cpus, store = this_machine()
    wanted = budget(experiment, manifest, cpus)
    check_store(wanted, store)
    return wanted, store


def this_machine() -> tuple[float, float]:
    """CPUs of this machine or container, and bytes that a Ray started here gives its store."""
    memory = container.memory_bytes()
    shared = shutil.disk_usage(SHARED).total if SHARED.is_dir() else memory
    return float(int(container.cpus())), min(STORE_SHARE * memory, shared)
