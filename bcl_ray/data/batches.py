"""Batches of all epochs by the epoch plan, prefetched by a thread, without Ray."""

import atexit
import contextlib
import itertools
import operator
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from bcl_ray.data.layout import Read
from bcl_ray.data.plan import Block, EpochPlan
from bcl_ray.experiment.options import Experiment

Item = TypeVar("Item")
Plans = Callable[[int], EpochPlan]
"""Returns the plan of an epoch, given its number."""
SECONDS_TO_STOP = 5  # for the item that a thread is making when the interpreter ends


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
    # `open_rows` counts the rows in use and as many again that are read ahead; the second half is
    # what the thread may hold.
    rows_ahead = max(1, plans(0).open_rows // 2 // world_size)

    def remaining() -> Iterator[tuple[int, EpochPlan, dict[str, Any]]]:
        """Epochs with their plans, and the options with which reads and batches agree."""
        for epoch in range(first_epoch, experiment.train.epochs):
            first = {"first_step": skipped_steps, "ramp": True} if epoch == first_epoch else {}
            yield epoch, plans(epoch), {"rank": rank, "world_size": world_size, **first}

    def reads() -> Iterator[tuple[int, Read]]:
        for epoch, plan, options in remaining():
            yield from ((epoch, read) for read in plan.reads(**options))

    def batches() -> Iterator[tuple[int, Any]]:
        with contextlib.closing(prefetch(blocks_of(reads()), rows_ahead, _num_rows)) as blocks:
            for epoch, plan, options in remaining():
                for pieces in plan.batches(blocks, **options):
                    yield epoch, deliver(pieces, epoch)

    prefetched = prefetch(batches(), experiment.scale.prefetch_batches)
    for epoch, pairs in itertools.groupby(prefetched, key=operator.itemgetter(0)):
        yield epoch, (batch for _, batch in pairs)


def _num_rows(block: Block) -> int:
    return len(next(iter(block.values())))


def prefetch(
    items: Iterable[Item], depth: int, size: Callable[[Item], int] = lambda _: 1
) -> Generator[Item, None, None]:
    """The same items, which a thread makes before they are needed.

    An error of the thread is raised here. When this iterator is closed, or the interpreter ends,
    the thread stops and closes `items`.

    Args:
        items: What to make.
        depth: The thread pauses when the sizes of the items that wait sum up to this, or more; at
            least 1.
        size: Size of an item, at least 1; by default items are counted.
    """
    buffer = _Buffer[Item](depth, size)

    def run() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not buffer.put(item):
                    break
        except BaseException as raised:  # the consumer raises it
            error = raised
        finally:
            if close := getattr(items, "close", None):
                close()
            buffer.end(error)
            atexit.unregister(end)

    def end() -> None:
        buffer.stop()
        thread.join(SECONDS_TO_STOP)

    thread = threading.Thread(target=run, name="prefetch", daemon=True)
    # Python ends a daemon thread wherever it is; within PyTorch that aborts the process.
    atexit.register(end)
    thread.start()
    try:
        yield from buffer.items()
    finally:
        buffer.stop()


class _Buffer(Generic[Item]):
    """Items between two threads, of a bounded total size."""

    def __init__(self, depth: int, size: Callable[[Item], int]) -> None:
        self._depth, self._size = depth, size
        self._changed = threading.Condition()
        self._ready: deque[Item] = deque()
        self._total = 0  # size of the ready items
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> bool:
        """Add an item, and wait until there is room for the next; False after `stop`."""
        with self._changed:
            self._ready.append(item)
            self._total += self._size(item)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._total < self._depth)
            return not self._stopped

    def end(self, error: BaseException | None) -> None:
        """No item follows; the error is raised after the last one."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """No item is wanted any more."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()

    def items(self) -> Iterator[Item]:
        """The items in order, as they come."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._ended)
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._total -= self._size(item)
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error
