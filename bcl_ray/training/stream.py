"""Batches from shards through Ray Data, which executes the epoch plan.

Each worker runs a Ray Data stream of its own part of the plan. (In one stream that Ray Data splits
between workers, they would wait for each other.) A data task reads, decodes and crops a few row
groups, on any CPU of the cluster. The blocks that tasks return arrive in the plan's order.

A stream covers all remaining epochs. It is executed in segments of SEGMENT_TASKS tasks, and the
next segment starts before the last one ends: there is no pause between epochs, and no list of all
tasks of a large data set. Data tasks do not import torch, which would take seconds in each process.
"""

import contextlib
import functools
import itertools
import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import ray.data
from ray.data import ExecutionResources

from bcl_ray.data.batches import planned_batches, prefetch
from bcl_ray.data.layout import Read, evaluation_reads, split_layout
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.ray_runtime.internals import ExecutionCallback
from bcl_ray.training.tasks import Batch, Task, TaskSource, joined, source_of, split_block, tasks_of

Item = TypeVar("Item")

SEGMENT_TASKS = 256
AHEAD_TASKS = 8  # the next segment starts when so many tasks of the one before are left
STEP_PAUSE = 0.01  # seconds
STORE_SHARE = 0.5  # of the cluster's object store, for all streams together


def training_batches(
    experiment: Experiment,
    manifest: Manifest,
    *,
    rank: int,
    world_size: int,
    first_step: int = 0,
    deliver: Callable[..., Any] = joined,
) -> Generator[tuple[int, Iterator[Any]], None, None]:
    """Each remaining epoch's number, with the worker's batches of it.

    Args:
        experiment: The run's options.
        manifest: Manifest of the shards in data.path.
        rank, world_size: The worker's number, and the number of workers.
        first_step: Number of steps of the whole run that are done.
        deliver: Makes a batch, given the list of its parts and the number of its epoch. It is
            called in the thread that prefetches. `Sender.training` also copies it to a device.
    """
    source = source_of(experiment, manifest, training=True)
    return planned_batches(
        experiment,
        functools.partial(epoch_plan, experiment, manifest),
        lambda reads: _stream(source, reads, world_size),
        deliver,
        rank=rank,
        world_size=world_size,
        first_step=first_step,
    )


def evaluation_batches(
    experiment: Experiment,
    manifest: Manifest,
    *,
    rank: int,
    world_size: int,
    deliver: Callable[..., Any] = joined,
) -> Iterator[Any]:
    """Batches of a worker's part of the evaluation split; all parts have every row once.

    Arguments as of `training_batches`, but `deliver` gets no epoch.
    """
    layout = split_layout(experiment, manifest, "eval_split")
    reads = ((0, read) for read in evaluation_reads(layout, rank, world_size))
    source = source_of(experiment, manifest, training=False)
    batches = _delivered(_stream(source, reads, world_size), deliver)
    return prefetch(batches, experiment.scale.prefetch_batches)


def _delivered(
    blocks: Generator[Batch, None, None], deliver: Callable[..., Item]
) -> Iterator[Item]:
    with contextlib.closing(blocks):  # also if the consumer stops early
        yield from (deliver([block]) for block in blocks)


def _stream(
    source: TaskSource, reads: Iterable[tuple[int, Read]], world_size: int
) -> Generator[Batch, None, None]:
    """One block per (epoch, read), in order; Ray Data's tasks run ahead of the consumer."""
    tasks = tasks_of(source, reads)

    def start(segment: list[Task]) -> Iterator[Batch]:
        blocks = _execute(source, segment, world_size)
        # Ray Data starts its tasks only when the first block is asked for, so ask for it here.
        return itertools.chain([next(blocks)], blocks)

    with ThreadPoolExecutor(1, "next-segment") as starter:
        segment = list(itertools.islice(tasks, SEGMENT_TASKS))
        upcoming = starter.submit(start, segment) if segment else None
        while upcoming is not None:
            next_segment = list(itertools.islice(tasks, SEGMENT_TASKS))
            blocks, upcoming = upcoming.result(), None
            for done, (task, block) in enumerate(zip(segment, blocks, strict=True)):
                if next_segment and upcoming is None and len(segment) - done <= AHEAD_TASKS:
                    upcoming = starter.submit(start, next_segment)
                yield from split_block(task, block)
            segment = next_segment


def _execute(source: TaskSource, tasks: Sequence[Task], world_size: int) -> Iterator[Batch]:
    """Run tasks as one Ray Data dataset; yields one block per task, in order."""
    scale = source.experiment.scale
    items = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        functools.partial(_run, source),
        batch_size=1,
        num_cpus=scale.cpus_per_data_task,
        zero_copy_batch=True,
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.custom_execution_callback_classes.append(PausingCallback)
    context.target_max_block_size = None  # otherwise Ray splits large blocks
    options = context.execution_options
    options.preserve_order = True
    # By default each stream may fill half of the cluster's object store, however many there are.
    cluster = ray.cluster_resources()
    options.resource_limits = ExecutionResources.for_limits(
        cpu=scale.data_cpus and scale.data_cpus / world_size,  # None stays None: no limit
        object_store_memory=STORE_SHARE * cluster["object_store_memory"] / world_size,
    )
    return iter(dataset.iter_batches(batch_size=None, batch_format="numpy"))


class PausingCallback(ExecutionCallback):
    """Pauses Ray Data's control loop after each of its steps.

    The loop runs in a thread of the training process. Without a pause it repeats its steps as fast
    as it can while finished tasks wait for the consumer, and training waits for the interpreter:
    epochs of small images took four times as long (measured 2026-11, Ray 2.60.0).
    """

    def on_execution_step(self, _: Any) -> None:
        """Sleep for a time that is short compared with a task's."""
        time.sleep(STEP_PAUSE)


def _run(source: TaskSource, item: Mapping[str, np.ndarray]) -> Batch:
    task: Task = pickle.loads(item["task"][0])  # noqa: S301  our own bytes, from _execute
    return source.load(task.epoch, task.reads)
