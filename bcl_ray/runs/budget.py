"""What a run needs, worked out before anything starts: steps, bytes, CPUs, memory."""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.data.layout import split_layout
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest, Split
from bcl_ray.data.shards.split_writer import row_group_rows
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine import container
from bcl_ray.machine.amounts import parts_in
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where Ray keeps its object store)
STORE_SHARE = 0.3  # of a node's memory, Ray's default for its object store
# Bytes of views that a data task returns at a time; each costs Ray some 10 ms (measured 2026-11).
BLOCK_BYTES = 32 * 2**20
RESIDENT_SHARE = 0.25  # of a GPU's memory, the most that images take with data.residency=auto
KEPT_SHARE = 0.1  # of a GPU's memory, for evaluation images that are kept for the next evaluation
KEPT_CPU_BYTES = 256 * 2**20  # the same, for a worker without a GPU
LESS_MEMORY = {  # by version of the epoch plan
    1: "data.max_workers (fewer lanes)",
    2: "optim.global_batch_size (smaller windows), or set data.plan=1, which mixes less",
}


@dataclass(frozen=True)
class Budget:
    """The needs of a run; of an elastic one, those of its fewest workers."""

    steps_per_epoch: int
    steps: int  # of the whole run
    images_per_epoch: int  # training images, without an incomplete last batch
    left_out: int  # images of that incomplete batch; in each epoch they are different ones
    eval_images: int
    bytes_per_epoch: int  # of the training split's shards, which are read once
    batch_bytes: int  # uint8 views of one worker's batch
    plan: int  # version of the epoch plan
    mixing: str  # in words: how often images of one row group meet in a batch, and a remedy
    worker_cpus: float  # CPUs of all workers together
    data_cpus: float | None  # CPUs for data tasks; 0 if data are resident, None if unknown
    store_bytes: int  # object-store memory of all batches in flight
    resident_bytes: int = 0  # images in the memory of a worker's device
    readers: int = 1  # workers that read each row group, at most
    reads_per_epoch: int = 0  # of row groups, at most; each is a request to the object store


def budget(experiment: Experiment, manifest: Manifest, cpus: float | None) -> Budget:
    """Work out what a run needs.

    Args:
        experiment: The run.
        manifest: Its data.
        cpus: CPUs of the whole cluster, None if unknown.

    Raises:
        ValueError: The run cannot work: there are too few images, or no CPUs are left for data.
    """
    plan = epoch_plan(experiment, manifest, 0)
    split = manifest.splits[experiment.data.train_split]
    batch, workers = experiment.optim.global_batch_size, experiment.scale.min_workers
    image_bytes = 3 * experiment.views.image_size**2 * (1 + experiment.num_contrastive)
    worker_cpus = workers * experiment.scale.cpus_per_worker
    data_cpus = _data_cpus(experiment, worker_cpus, cpus)
    tasks = parts_in(data_cpus, experiment.scale.cpus_per_data_task) if data_cpus else workers
    task_rows = max(split.row_group_rows, BLOCK_BYTES // image_bytes)
    # At most all rows of this epoch and of the next one, which a small data set may reach.
    open_rows = min(2 * split.rows, plan.open_rows + tasks * task_rows)
    readers = _readers(experiment, split, plan.steps)
    rows_in_flight = open_rows + experiment.scale.prefetch_batches * batch
    return Budget(
        steps_per_epoch=plan.steps,
        steps=plan.steps * experiment.train.epochs,
        images_per_epoch=plan.steps * batch,
        left_out=split.rows - plan.steps * batch,
        eval_images=split_layout(experiment, manifest, "evaluation").rows,
        bytes_per_epoch=int(split.shards.bytes.sum()),
        batch_bytes=image_bytes * batch // workers,
        plan=experiment.data.plan,
        mixing=_mixing(experiment, split, plan.steps),
        worker_cpus=worker_cpus,
        data_cpus=data_cpus,
        store_bytes=0 if experiment.is_resident else image_bytes * rows_in_flight,
        resident_bytes=resident_bytes(experiment, manifest, workers)
        if experiment.is_resident
        else 0,
        readers=readers,
        reads_per_epoch=int(plan.layout.first_groups[-1]) * readers,
    )


def _readers(experiment: Experiment, split: Split, steps: int) -> int:
    """How many workers read each row group, at most; in version 1 of the plan, about that many."""
    if experiment.data.plan == 1 or steps >= split.row_group_rows:
        return 1
    spread = 1 + -(-(split.row_group_rows - 1) // steps)
    return min(experiment.optim.global_batch_size, spread)


def _mixing(experiment: Experiment, split: Split, steps: int) -> str:
    """How well the epoch plan mixes; if the batch is too large for the row groups, what fits."""
    group = split.row_group_rows
    if experiment.data.plan == 1:
        return f"images of a row group ({group}) meet in batches, as they do in data.plan=1"
    if steps >= group:
        return f"images of a row group ({group}) never meet in a batch"
    readers = _readers(experiment, split, steps)
    scale = experiment.scale
    workers = math.lcm(scale.min_workers, scale.max_workers)
    remedies = []
    if (largest := split.rows // group // workers * workers) > 0:
        remedies.append(f"optim.global_batch_size={largest}")
    smaller = row_group_rows(split.rows, int(split.shards.bytes.sum()) // split.rows)
    if smaller < group:
        remedies.append(f"shards that are written again (row groups of {smaller})")
    return (
        f"an epoch has fewer steps ({steps}) than a row group has images ({group}): up to "
        f"{readers} workers read each row group; on fewer workers its images meet, as often as by "
        f"chance; better: {' or '.join(remedies) or 'fewer workers'}"
    )


def resident_bytes(experiment: Experiment, manifest: Manifest, workers: int) -> int:
    """Bytes of images in a device's memory if data are resident.

    These are all training images, and the worker's part of the evaluation images.
    """
    train_rows, eval_rows = (
        split_layout(experiment, manifest, kind).rows for kind in ("training", "evaluation")
    )
    return 3 * experiment.views.image_size**2 * (train_rows + -(-eval_rows // workers))


def kept_limit(gpu_memory: float) -> float:
    """Most bytes of evaluation images that a worker keeps for the next evaluations.

    Args:
        gpu_memory: Bytes of the worker's GPU; 0 without one.
    """
    return KEPT_SHARE * gpu_memory if gpu_memory else KEPT_CPU_BYTES


def _data_cpus(experiment: Experiment, worker_cpus: float, cpus: float | None) -> float | None:
    if experiment.is_resident:
        return 0.0
    scale, least = experiment.scale, experiment.min_data_cpus
    if cpus is None:
        return scale.data_cpus
    left = cpus - worker_cpus
    if left < least:
        raise UserError(
            f"scale.workers ({scale.min_workers}) x scale.cpus_per_worker "
            f"({scale.cpus_per_worker:g}) leave {max(left, 0):g} of {cpus:g} CPUs for data, which "
            f"needs {least:g}: lower one of them, or scale.data_cpus and scale.cpus_per_data_task"
        )
    return scale.data_cpus or left


def check_store(run_budget: Budget, store_bytes: float) -> None:
    """Refuse a run whose batches in flight do not fit in the object store.

    Args:
        run_budget: What the run needs.
        store_bytes: Object-store memory of the cluster.

    Raises:
        ValueError: They do not fit; the text names the options to lower.
    """
    if run_budget.store_bytes > store_bytes:
        raise UserError(
            f"batches in flight need {run_budget.store_bytes / 2**30:.1f} GiB of object store, the "
            f"cluster has {store_bytes / 2**30:.1f} GiB: lower scale.prefetch_batches, "
            f"views.image_size or {LESS_MEMORY[run_budget.plan]}"
        )


def preflight(
    experiment: Experiment, manifest: Manifest, *, connected: bool = False
) -> tuple[Budget, float | None]:
    """Check a run before Ray starts, and work out what it needs.

    Args:
        experiment: The run.
        manifest: Its data.
        connected: Whether this process is connected to Ray already, as that of a trial is; it may
            then have no RAY_ADDRESS.

    Returns:
        The budget, and the bytes of the object store; None if the run does not start its own Ray.

    Raises:
        ValueError: The run cannot work.
        OSError: A file that an option names does not exist.
    """
    model = experiment.model
    if model.weights_file is not None:
        files.check_file(model.weights_file)
    if model.batch_norm == "frozen" and model.weights is None:
        raise UserError(
            "model.batch_norm=frozen keeps the batch norms of model.weights, which is null: set "
            "model.weights; or, to begin with random weights, model.batch_norm=sync and "
            "optim.backbone_lr=1"
        )
    if connected or os.environ.get("RAY_ADDRESS"):
        return budget(experiment, manifest, None), None
    cpus, store_bytes = this_machine()
    run_budget = budget(experiment, manifest, cpus)
    check_store(run_budget, store_bytes)
    return run_budget, store_bytes


def this_machine() -> tuple[float, float]:
    """CPUs of this machine or container, and bytes of the object store of a Ray started here."""
    memory = container.memory_bytes()
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else memory
    return float(int(container.cpus())), min(STORE_SHARE * memory, shared)
