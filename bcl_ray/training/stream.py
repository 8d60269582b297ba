"""Shards -> Ray Data -> batches: the plan is what Ray Data executes.

Every Train worker runs a Ray Data stream of its own part of the plan: an item of the stream is
a few row groups, a task reads, decodes and crops them on any CPU of the cluster, and blocks
come back in the plan's order. Without a split coordinator there is no barrier between workers.

A stream spans epochs. It is executed in segments, each started while the one before ends, so
that neither a billion images nor a small epoch costs a start-up pause. Data tasks import no
torch, which would cost seconds in each of their processes.
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
STEP_PAUSE = 0.01  # seconds
STORE_SHARE = 0.5  # of the cluster's object store, for all streams together
AHEAD_TASKS = 8  # a segment's last tasks, during which the next one starts


def training_batches(
    experiment: Experiment,
    manifest: Manifest,
    *,
    rank: int,
    world_size: int,
    first_step: int = 0,
    deliver: Callable[..., Any] = joined,
) -> Generator[tuple[int, Iterator[Any]], None, None]:
    """Each epoch that is left, with the worker's batches of it.

    Args:
        experiment: what to train.
        manifest: of the shards in experiment.data.path.
        rank: this worker's number.
        world_size: number of workers.
        first_step: steps of the whole run that are done.
        deliver: makes what is yielded of a batch's pieces and the epoch's number, in the thread
            that runs ahead: `Sender.training` brings it to a device.
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
    """A worker's part of the evaluation split; the parts hold every row once.

    Arguments as of `training_batches`.
    """
    rows = split_layout(experiment, manifest, "eval_split")
    reads = ((0, read) for read in evaluation_reads(rows, rank, world_size))
    source = source_of(experiment, manifest, training=False)
    batches = _delivered(_stream(source, reads, world_size), deliver)
    return prefetch(batches, experiment.scale.prefetch_batches)


def _delivered(
    blocks: Generator[Batch, None, None], deliver: Callable[..., Item]
) -> Iterator[Item]:
    with contextlib.closing(blocks):
        for block in blocks:
            yield deliver([block])


def _stream(
    source: TaskSource, reads: Iterable[tuple[int, Read]], world_size: int
) -> Generator[Batch, None, None]:
    """One block per read, in order, from Ray Data tasks that run ahead of the consumer."""
    tasks = tasks_of(source, reads)

    def start(segment: list[Task]) -> Iterator[Batch]:
        blocks = _execute(source, segment, world_size)
        return itertools.chain([next(blocks)], blocks)

    with ThreadPoolExecutor(1, "next-segment") as starter:
        segment = list(itertools.islice(tasks, SEGMENT_TASKS))
        running = starter.submit(start, segment) if segment else None
        while running is not None:
            following = list(itertools.islice(tasks, SEGMENT_TASKS))
            blocks, running = running.result(), None
            for done, (task, block) in enumerate(zip(segment, blocks, strict=True)):
                if following and running is None and len(segment) - done <= AHEAD_TASKS:
                    running = starter.submit(start, following)
                yield from split_block(task, block)
            segment = following


def _execute(source: TaskSource, tasks: Sequence[Task], world_size: int) -> Iterator[Batch]:
    """Run tasks as one Ray Data dataset; one block per task, in order."""
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
    context.target_max_block_size = None  # a block that Ray splits would no longer be one task's
    options = context.execution_options
    options.preserve_order = True
    # By default each stream may fill half of the cluster's store, with those of other workers
    # beyond all of it.
    cluster = ray.cluster_resources()
    options.resource_limits = ExecutionResources.for_limits(
        cpu=scale.data_cpus and scale.data_cpus / world_size,
        object_store_memory=STORE_SHARE * cluster["object_store_memory"] / world_size,
    )
    return iter(dataset.iter_batches(batch_size=None, batch_format="numpy"))


class PausingCallback(ExecutionCallback):
    """Lets Ray Data's control loop rest between its steps.

    The loop runs in a thread of the training process. While finished tasks wait for the
    consumer it spins, and takes the interpreter from training: epochs of small images took
    four times as long (measured 2026-11, Ray 2.60.0).
    """

    def on_execution_step(self, _: Any) -> None:
        """Sleep; a task takes much longer."""
        time.sleep(STEP_PAUSE)


def _run(source: TaskSource, item: Mapping[str, np.ndarray]) -> Batch:
    task: Task = pickle.loads(item["task"][0])  # noqa: S301  our own bytes, from _execute
    return source.load(task.epoch, task.reads)
