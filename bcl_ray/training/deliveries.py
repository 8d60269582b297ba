"""What workers need of a stream, in the order in which they need it; without Ray.

The order is that of the whole run: an epoch's training blocks of all workers, by the step that
first needs them, then the evaluation's, if the epoch is evaluated, then the next epoch's. So one
stream serves training and evaluation, and the next epoch's blocks are made while workers evaluate.
"""

import heapq
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bcl_ray.data.layout import Read, evaluation_reads, split_layout
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.training.tasks import Task, TaskSource, source_of, tasks_of

Purpose = Literal["training", "evaluation"]


class WorkerTask(NamedTuple):
    """A task, and the worker that needs its blocks."""

    rank: int
    purpose: Purpose
    task: Task


@dataclass(frozen=True)
class Assignment:
    """The part of a run that a stream delivers."""

    experiment: Experiment
    manifest: Manifest
    ranks: Sequence[int]
    """Workers that the stream serves."""
    world_size: int
    """Number of all workers of the run."""
    purposes: frozenset[Purpose] = frozenset(("training", "evaluation"))
    first_step: int = 0
    """Steps of the whole run that are done."""
    evaluate_first: bool = False
    """Whether the evaluation of the epoch before `first_step` is still to be done."""
    evaluates_once: bool = False
    """Whether workers keep the images of the first evaluation for all others."""

    def deliveries(self) -> Iterator[WorkerTask]:
        """All deliveries that are left of the run, in order."""
        # To deliver at most: one for each epoch, and perhaps that of evaluate_first.
        evaluations = 1 if self.evaluates_once else self.experiment.train.epochs + 1
        if self.evaluate_first:
            yield from self._evaluation()
            evaluations -= 1
        if "training" not in self.purposes:
            return
        train = self.experiment.train
        first_epoch, begin = divmod(self.first_step, epoch_plan(*self._data, 0).steps)
        for epoch in range(first_epoch, train.epochs):
            is_first = epoch == first_epoch
            yield from self._training(epoch, begin if is_first else 0, ramp=is_first)
            if "evaluation" in self.purposes and train.evaluates(epoch) and evaluations:
                yield from self._evaluation()
                evaluations -= 1

    def sources(self) -> dict[Purpose, TaskSource]:
        """The sources of tasks, by purpose."""
        return {
            purpose: source_of(*self._data, training=purpose == "training")
            for purpose in sorted(self.purposes)
        }

    @property
    def _data(self) -> tuple[Experiment, Manifest]:
        return self.experiment, self.manifest

    def _training(self, epoch: int, begin: int, *, ramp: bool) -> Iterator[WorkerTask]:
        """Deliveries of an epoch from step `begin`; with `ramp` its first batch comes sooner."""
        plan = epoch_plan(*self._data, epoch)

        def of_worker(rank: int) -> Iterator[tuple[int, int, WorkerTask]]:
            reads = plan.reads(rank, self.world_size, begin, ramp=ramp)
            tasks = training_tasks(*self._data, ((epoch, r) for r in reads), self.world_size)
            for step, same_step in itertools.groupby(tasks, key=_first_step):
                for number, task in enumerate(same_step):
                    yield step, number, WorkerTask(rank, "training", task)

        workers = [of_worker(rank) for rank in self.ranks]
        # Where workers need many tasks for the same step, they take turns: all wait for all.
        merged = heapq.merge(*workers, key=operator.itemgetter(0, 1))
        return (delivery for _, _, delivery in merged)

    def _evaluation(self) -> Iterator[WorkerTask]:
        """Deliveries of an evaluation.

        Workers take turns: they evaluate side by side, and wait for each other at the end.
        """

        def of_worker(rank: int) -> Iterator[WorkerTask]:
            for task in evaluation_tasks(*self._data, rank, self.world_size):
                yield WorkerTask(rank, "evaluation", task)

        rounds = itertools.zip_longest(*(of_worker(rank) for rank in self.ranks))
        return (delivery for group in rounds for delivery in group if delivery is not None)


def _first_step(task: Task) -> int:
    return task.portions[0][0].step


def training_tasks(
    experiment: Experiment,
    manifest: Manifest,
    reads: Iterator[tuple[int, Read]],
    world_size: int,
) -> Iterator[Task]:
    """The tasks of a worker's (epoch, read) of the training split."""
    rows = split_layout(experiment, manifest, "training").rows
    source = source_of(experiment, manifest, training=True)
    return tasks_of(source, reads, rows // world_size)


def evaluation_tasks(
    experiment: Experiment, manifest: Manifest, rank: int, world_size: int
) -> Iterator[Task]:
    """The tasks of a worker's part of an evaluation."""
    layout = split_layout(experiment, manifest, "evaluation")
    reads = ((0, read) for read in evaluation_reads(layout, rank, world_size))
    source = source_of(experiment, manifest, training=False)
    return tasks_of(source, reads, layout.rows // world_size)
