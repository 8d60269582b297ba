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
import operator
import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray.data
from ray.data import ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback

from bcl_ray import storage
from bcl_ray.batches import ahead, planned_batches
from bcl_ray.budget import TASK_BYTES, epoch_plan, layout
from bcl_ray.config import Experiment
from bcl_ray.plan import Read, evaluation_reads
from bcl_ray.shards import Manifest, read_row_group
from bcl_ray.views import host

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")

SEGMENT_TASKS = 256
STEP_PAUSE = 0.01  # seconds
STORE_SHARE = 0.5  # of the cluster's object store, for all streams together
AHEAD_TASKS = 8  # a segment's last tasks, during which the next one starts


@dataclass(frozen=True)
class Source:
    """The shards of one split and how to turn their images into views; goes to every task.

    Args:
        path: folder or URI of the shards.
        files: the shards' names, in the manifest's order.
        experiment: options of the views, and the seed.
        training: random views, else the one view of evaluation.
    """

    path: str
    files: tuple[str, ...]
    experiment: Experiment
    training: bool

    def load(self, epoch: int, reads: Iterable[Read]) -> Batch:
        """Read, decode and crop rows: views uint8 (N, 1 + V, H, W, 3), labels, ids (N,)."""
        tables = [
            read_row_group(storage.join(self.path, self.files[read.shard]), read.row_group).take(
                read.rows
            )
            for read in reads
        ]
        columns = {
            name: np.concatenate([table[name].to_numpy() for table in tables])
            for name in ("id", "label")
        }
        images = [image for table in tables for image in table["image"].to_pylist()]
        views, ids = self.experiment.views, columns["id"]
        if self.training:
            made = host.train_views(
                images,
                ids,
                views,
                num_contrastive=self.experiment.num_contrastive,
                seed=self.experiment.train.seed,
                epoch=epoch,
            )
        else:
            made = host.eval_views(images, views, ids=ids)
        return {"views": made, "labels": columns["label"].astype(np.int64), "ids": ids}


def joined(parts: Sequence[Mapping[str, np.ndarray]], epoch: int = 0) -> Batch:  # noqa: ARG001
    """A batch in one piece, in this process's memory."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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
    rows = layout(experiment, manifest, "eval_split")
    reads = ((0, read) for read in evaluation_reads(rows, rank, world_size))
    source = source_of(experiment, manifest, training=False)
    batches = _delivered(_stream(source, reads, world_size), deliver)
    return ahead(batches, experiment.scale.prefetch_batches)


def _delivered(
    blocks: Generator[Batch, None, None], deliver: Callable[..., Item]
) -> Iterator[Item]:
    with contextlib.closing(blocks):
        for block in blocks:
            yield deliver([block])


def source_of(experiment: Experiment, manifest: Manifest, *, training: bool) -> Source:
    """The training or the evaluation split as its tasks read it."""
    name = experiment.data.train_split if training else experiment.data.eval_split
    files = tuple(shard.file for shard in manifest.splits[name].shards)
    return Source(experiment.data.path, files, experiment, training)


@dataclass(frozen=True)
class Task:
    """Reads of one epoch that one Ray task turns into views."""

    epoch: int
    reads: tuple[Read, ...]


def tasks_of(source: Source, reads: Iterable[tuple[int, Read]]) -> Iterator[Task]:
    """Group reads, so that a task makes about TASK_BYTES of views and at least one read."""
    options = source.experiment
    per_row = 3 * options.views.image_size**2 * (1 + options.num_contrastive * source.training)
    for epoch, of_epoch in itertools.groupby(reads, key=operator.itemgetter(0)):
        group: list[Read] = []
        for _, read in of_epoch:
            if group and sum(len(r.rows) for r in [*group, read]) * per_row > TASK_BYTES:
                yield Task(epoch, tuple(group))
                group = []
            group.append(read)
        yield Task(epoch, tuple(group))


def _stream(
    source: Source, reads: Iterable[tuple[int, Read]], world_size: int
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


def split_block(task: Task, block: Batch) -> Iterator[Batch]:
    """A task's block, read by read."""
    begin = 0
    for read in task.reads:
        end = begin + len(read.rows)
        yield {name: column[begin:end] for name, column in block.items()}
        begin = end


def _execute(source: Source, tasks: Sequence[Task], world_size: int) -> Iterator[Batch]:
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
    context.custom_execution_callback_classes.append(Unhurried)
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


class Unhurried(ExecutionCallback):  # type: ignore[misc]  # Ray has no types
    """Lets Ray Data's control loop rest between its steps.

    The loop runs in a thread of the training process. While finished tasks wait for the
    consumer it spins, and takes the interpreter from training: epochs of small images took
    four times as long (measured 2026-11, Ray 2.60.0).
    """

    def on_execution_step(self, _: Any) -> None:
        """Sleep; a task takes much longer."""
        time.sleep(STEP_PAUSE)


def _run(source: Source, item: Mapping[str, np.ndarray]) -> Batch:
    task: Task = pickle.loads(item["task"][0])  # noqa: S301  our own bytes, from _execute
    return source.load(task.epoch, task.reads)
