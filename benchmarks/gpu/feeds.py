"""Batches of a data set, as a worker gets them, from a pool of processes instead of Ray Data."""

import functools
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch

from bcl_ray.data.batches import planned_batches
from bcl_ray.data.layout import Read
from bcl_ray.data.plan import Block, epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import DeviceBatch, Sender
from bcl_ray.experiment.options import Experiment
from bcl_ray.training.deliveries import evaluation_tasks, training_tasks
from bcl_ray.training.residency import ResidentFeed
from bcl_ray.training.tasks import EVALUATION_ROWS, Task, rebatched, source_of
from benchmarks.pool import pooled_blocks


class Pooled:
    """Like `residency.ResidentFeed`, but views are made on the host, by all of its CPUs."""

    def __init__(self, experiment: Experiment, manifest: Manifest, device: torch.device) -> None:
        self._experiment, self._manifest, self._device = experiment, manifest, device
        self._processes = max(1, min(16, len(os.sched_getaffinity(0))) - 1)

    def training(
        self,
        sender: Sender,
        first_step: int,
        *,
        evaluate_first: bool = False,  # noqa: ARG002  it makes no difference here
    ) -> Generator[tuple[int, Iterator[Any]], None, None]:
        """Each epoch that is left, with its batches."""
        return planned_batches(
            self._experiment,
            functools.partial(epoch_plan, self._experiment, self._manifest),
            self._training_blocks,
            sender.send_training,
            first_step=first_step,
        )

    def evaluation(self) -> Iterable[DeviceBatch]:
        """The evaluation split."""
        sender = Sender(self._device, self._experiment.views)
        tasks = evaluation_tasks(self._experiment, self._manifest, 0, 1)
        for parts in rebatched(self._blocks(tasks, training=False), EVALUATION_ROWS):
            yield sender.send_evaluation(parts)

    def _training_blocks(self, reads: Iterator[tuple[int, Read]]) -> Generator[Block, None, None]:
        tasks = training_tasks(self._experiment, self._manifest, reads, 1)
        yield from self._blocks(tasks, training=True)

    def _blocks(self, tasks: Iterable[Task], *, training: bool) -> Generator[Block, None, None]:
        source = source_of(self._experiment, self._manifest, training=training)
        yield from pooled_blocks(source, tasks, self._processes)


Feed = Pooled | ResidentFeed
FEEDS: dict[str, type[Feed]] = {"device": ResidentFeed, "host": Pooled}
