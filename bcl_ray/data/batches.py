"""Epochs of batches, as the plan deals them, made by a thread that runs ahead; without Ray."""

import contextlib
import itertools
import operator
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from bcl_ray.data.layout import Read
from bcl_ray.data.plan import EpochPlan
from bcl_ray.experiment.options import Experiment

Item = TypeVar("Item")
Block = Mapping[str, np.ndarray]
Plans = Callable[[int], EpochPlan]
"""The plan of an epoch, by its number."""


def planned_batches(
    experiment: Experiment,
    plans: Plans,
    blocks_of: Callable[[Iterator[tuple[int, Read]]], Generator[Block, None, None]],
    deliver: Callable[..., Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
) -> Generator[tuple[int, Iterator[Any]], None, None]:
    """Yields each epoch that is left, with the worker's batches of it.

    Args:
        experiment: how many epochs, and how many batches are made ahead.
        plans: of its epochs.
        blocks_of: makes one block of each (epoch, read), in order.
        deliver: makes what is yielded of a batch's pieces and the epoch's number, in the thread
            that runs ahead.
        rank: this worker's number.
        world_size: number of workers.
        first_step: steps of the whole run that are done.
    """
    first_epoch, skip = divmod(first_step, plans(0).steps)

    def remaining() -> Iterator[tuple[int, EpochPlan, int]]:
        for epoch in range(first_epoch, experiment.train.epochs):
            yield epoch, plans(epoch), skip if epoch == first_epoch else 0

    def reads() -> Iterator[tuple[int, Read]]:
        for epoch, plan, begin in remaining():
            yield from ((epoch, read) for read in plan.reads(rank, world_size, begin))

    def batches() -> Iterator[tuple[int, Any]]:
        with contextlib.closing(blocks_of(reads())) as blocks:
            for epoch, plan, begin in remaining():
                for parts in plan.batches(blocks, rank, world_size, begin):
                    yield epoch, deliver(parts, epoch)

    made = ahead(batches(), experiment.scale.prefetch_batches)
    for epoch, pairs in itertools.groupby(made, key=operator.itemgetter(0)):
        yield epoch, (batch for _, batch in pairs)


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, made by a thread that stays up to `depth` of them ahead."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((item, error), timeout=0.1)

    def run() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
            put(None, None)
        except BaseException as error:  # the consumer raises it
            put(None, error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    threading.Thread(target=run, name="batches-ahead", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
