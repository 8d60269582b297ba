"""Batches of all epochs by the epoch plan, prefetched by a thread, without Ray."""

import contextlib
import itertools
import operator
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from bcl_ray.data.layout import Read
from bcl_ray.data.plan import Block, EpochPlan
from bcl_ray.experiment.options import Experiment

Item = TypeVar("Item")
Plans = Callable[[int], EpochPlan]
"""Returns the plan of an epoch, given its number."""


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
    """The worker's batches of each epoch that is left.

    Args:
        experiment: Determines the number of epochs, and of batches to prefetch.
        plans: The epoch plans.
        blocks_of: Makes one block for each (epoch, read), in the same order.
        deliver: Makes a batch, given its pieces and the number of its epoch. It is called in the
            thread that prefetches.
        first_step: Steps of the whole run that are done already.

    Yields:
        The number of an epoch, and its batches.
    """
    first_epoch, skipped_steps = divmod(first_step, plans(0).steps)
    rows_per_step = experiment.optim.global_batch_size // world_size

    def remaining() -> Iterator[tuple[int, EpochPlan, int, bool]]:
        for epoch in range(first_epoch, experiment.train.epochs):
            is_first = epoch == first_epoch
            yield epoch, plans(epoch), skipped_steps if is_first else 0, is_first

    def reads() -> Iterator[tuple[int, Read]]:
        for epoch, plan, begin, ramp in remaining():
            yield from ((epoch, read) for read in plan.reads(rank, world_size, begin, ramp=ramp))

    def batches() -> Iterator[tuple[int, Any]]:
        with contextlib.closing(blocks_of(reads())) as blocks:
            ahead = _Ahead(blocks)
            for epoch, plan, begin, ramp in remaining():
                for pieces in plan.batches(ahead, rank, world_size, begin, ramp=ramp):
                    yield epoch, deliver(pieces, epoch)
                    ahead.take(rows_per_step)

    prefetched = prefetch(batches(), experiment.scale.prefetch_batches)
    for epoch, pairs in itertools.groupby(prefetched, key=operator.itemgetter(0)):
        yield epoch, (batch for _, batch in pairs)


class _Ahead:
    """The same blocks, of which some were taken before they are needed.

    A plan needs all blocks of a window when it begins. Those that are made while the last window is
    used have to be taken from whoever makes them, who otherwise waits until they are.
    """

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._taken: deque[Block] = deque()
        self._missing = 0  # rows that are still to be taken; negative after a block of more rows

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        return self._taken.popleft() if self._taken else next(self._blocks)

    def take(self, rows: int) -> None:
        """Take about so many more rows, as training has just used."""
        self._missing += rows
        while self._missing > 0 and (block := next(self._blocks, None)) is not None:
            self._taken.append(block)
            self._missing -= len(next(iter(block.values())))


def prefetch(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, which a thread makes up to `depth` items before they are needed.

    An error of the thread is raised here. When this iterator is closed, the thread stops and closes
    `items`.
    """
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

    threading.Thread(target=run, name="prefetch-batches", daemon=True).start()
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
