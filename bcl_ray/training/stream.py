"""A worker's batches from a supplier, in the order of the epoch plan."""

import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import ray

from bcl_ray.data.batches import planned_batches, prefetch
from bcl_ray.data.layout import Read
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.training.deliveries import Purpose, evaluation_tasks, training_tasks
from bcl_ray.training.tasks import (
    EVALUATION_ROWS,
    Batch,
    Portion,
    Task,
    joined,
    rebatched,
    split_block,
    unpacked,
)

REQUESTED_BLOCKS = 2  # that a worker asks for ahead of time


class SupplierClient:
    """A worker's end of its supplier.

    Args:
        supplier: Handle of the supplier.
        rank: The worker's number.
    """

    def __init__(self, supplier: Any, rank: int) -> None:
        self._supplier, self.rank = supplier, rank
        self._requested: Counter[Purpose] = Counter()

    def blocks(self, purpose: Purpose, tasks: Iterable[Task]) -> Iterator[tuple[Portion, Batch]]:
        """The portions of the worker's next tasks, in order, each with its block."""
        portions = (portion for task in tasks for portion in task.portions)
        requested: deque[tuple[Portion, Any]] = deque()

        def request(count: int) -> None:
            for portion in itertools.islice(portions, count):
                number = self._requested[purpose]
                self._requested[purpose] += 1
                requested.append((portion, self._supplier.take.remote(self.rank, purpose, number)))

        request(REQUESTED_BLOCKS)
        while requested:
            portion, taken = requested.popleft()
            (reference,) = ray.get(taken)
            request(1)
            yield portion, unpacked(ray.get(reference))


def training_batches(
    experiment: Experiment,
    manifest: Manifest,
    client: SupplierClient,
    *,
    world_size: int,
    first_step: int = 0,
    deliver: Callable[..., Any] = joined,
) -> Generator[tuple[int, Iterator[Any]], None, None]:
    """Each remaining epoch's number, with the worker's batches of it.

    Args:
        experiment: The run's options.
        manifest: Manifest of the shards in data.path.
        client: Of the worker's supplier, whose assignment begins with the same step.
        world_size: Number of workers.
        first_step: Number of steps of the whole run that are done.
        deliver: Makes a batch, given the list of its parts and the number of its epoch. It is
            called in the thread that prefetches. `Sender.send_training` also copies it to a device.
    """

    def blocks(reads: Iterator[tuple[int, Read]]) -> Generator[Batch, None, None]:
        tasks = training_tasks(experiment, manifest, reads, world_size)
        for portion, block in client.blocks("training", tasks):
            yield from split_block(portion, block)

    return planned_batches(
        experiment,
        functools.partial(epoch_plan, experiment, manifest),
        blocks,
        deliver,
        rank=client.rank,
        world_size=world_size,
        first_step=first_step,
    )


def evaluation_batches(
    experiment: Experiment,
    manifest: Manifest,
    client: SupplierClient,
    *,
    world_size: int,
    deliver: Callable[..., Any] = joined,
) -> Iterator[Any]:
    """Batches of a worker's part of one evaluation; all parts have every row once.

    Arguments as of `training_batches`, but `deliver` gets no epoch.
    """
    tasks = evaluation_tasks(experiment, manifest, client.rank, world_size)
    blocks = (block for _, block in client.blocks("evaluation", tasks))
    batches = (deliver(parts) for parts in rebatched(blocks, EVALUATION_ROWS))
    return prefetch(batches, experiment.scale.prefetch_batches)
