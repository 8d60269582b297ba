"""Batches through Ray: tasks read them, actors label them, and they come back in order.

The driver has a bounded number of batches in progress, in proportion to the actors that have
started. So its memory does not depend on the number of images, there is no list of all tasks, and
no actor waits because an earlier batch is not yet labelled. Each actor has two batches at a time:
the second one's views travel to its node while it labels the first.

An actor whose process or node is lost is replaced, and its batches are labelled again. Views that
are lost with a node are read again by Ray.

Ray Data is not used: it keeps a list of all its tasks and statistics of all its blocks, which for
10^8 images would be 781,250 of each (batches of 128).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from bcl_ray.machine.allocator import keep_freed_memory
from bcl_ray.use.predict.listing import Listing
from bcl_ray.use.predict.pool import ActorPool
from bcl_ray.use.predict.tables import Columns

BATCHES_PER_ACTOR = 2
WAITING_BATCHES = 2  # per actor, that are read or labelled and wait for their turn
MAX_DEATHS = 3  # in a row, of an actor and its successors, without a labelled batch in between
WAIT_SECONDS = 0.2  # for the end of a task, before newly listed images are looked for

Model = tuple[str, str, int, bool]  # checkpoint's folder and hash, classes to name, embeddings


@dataclass(eq=False)
class _Batch:
    """A batch in progress."""

    views: Any  # reference of the batch as it was read; None once it is labelled
    labels: Columns | None = None


@dataclass(eq=False)
class _Actor:
    """An actor with the network."""

    handle: Any
    deaths: int  # of its predecessors, since the last labelled batch
    lost: bool = False


class LabellerActor:
    """The actor's class.

    The model is loaded by a method and not in __init__: an error there would look like a dead
    actor, and be retried.
    """

    def load(self, uri: str, sha256: str, top: int, embeddings: bool) -> None:
        """Load the model, see `Labeller`."""
        from bcl_ray.use.predict.labeller import Labeller  # noqa: PLC0415  imports torch

        keep_freed_memory()
        self._labeller = Labeller(uri, sha256, top=top, embeddings=embeddings)

    def label(self, batch: Columns) -> Columns:
        """Label a batch of views, see `Labeller`."""
        return self._labeller(batch)


class Labelling:
    """Labels batches of images; a context that ends its actors.

    Args:
        listing: The number of images, which may grow meanwhile.
        first: Position of the first image.
        batch_size: Images per batch.
        read: Called in tasks with the positions of a batch's first image and after its last one;
            returns what `Labeller` takes.
        model: Arguments of `Labeller`.
        pool: How many actors and tasks there are, and their resources.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        first: int,
        batch_size: int,
        read: Callable[[int, int], Columns],
        model: Model,
        pool: ActorPool,
    ) -> None:
        self._listing, self._next, self._size = listing, first, batch_size
        self._model, self._pool = model, pool
        # Once for all tasks: it may hold the names of many shards.
        self._read = ray.put(read)
        self._actors: set[_Actor] = set()  # that have started
        self._free: deque[_Actor] = deque()  # once for each batch that an actor can take
        self._order: deque[_Batch] = deque()  # batches in progress
        self._unassigned: deque[_Batch] = deque()  # those that no actor has
        self._reading: set[Any] = set()  # references of views
        # By the reference of the result; without a batch, the actor loads the model.
        self._calls: dict[Any, tuple[_Actor, _Batch | None]] = {}
        self._max_readers = 1

    def __enter__(self) -> "Labelling":
        self._new_actor = ray.remote(LabellerActor).options(
            num_cpus=self._pool.actor["CPU"], num_gpus=self._pool.actor.get("GPU", 0)
        )
        self._read_task = ray.remote(_read).options(num_cpus=self._pool.reader["CPU"])
        for _ in range(self._pool.actors):
            self._start_actor(deaths=0)
        self._limit_readers()
        return self

    def __exit__(self, *_: object) -> None:
        called = {actor for actor, _ in self._calls.values()}
        for actor in self._actors | called:  # with those that still load the model
            ray.kill(actor.handle)

    def blocks(self) -> Iterator[Columns]:
        """The labels of each batch, in order.

        Raises:
            RayError: A batch could not be read or labelled.
        """
        while True:
            self._start_reading()
            self._assign()
            while self._order and (labels := self._order[0].labels) is not None:
                self._order.popleft()
                yield labels
            listed = self._listing.now()
            if listed.complete and self._next == listed.images and not self._order:
                return
            self._wait()

    def _start_reading(self) -> None:
        """Start tasks for the next batches, as many as may be in progress and are listed."""
        most = (self._pool.readers + BATCHES_PER_ACTOR + WAITING_BATCHES) * self._num_actors
        while len(self._reading) < self._max_readers and len(self._order) < most:
            listed = self._listing.now()
            stop = min(self._next + self._size, listed.images)
            is_whole = stop == self._next + self._size or listed.complete
            if stop <= self._next or not is_whole:
                return
            batch = _Batch(self._read_task.remote(self._read, self._next, stop))
            self._reading.add(batch.views)
            self._order.append(batch)
            self._unassigned.append(batch)
            self._next = stop

    def _assign(self) -> None:
        """Give batches to actors that can take one, the first batches first."""
        while self._free and self._unassigned:
            actor = self._free.popleft()
            if not actor.lost:
                batch = self._unassigned.popleft()
                self._calls[actor.handle.label.remote(batch.views)] = (actor, batch)

    def _wait(self) -> None:
        """Wait until a task or call ends, though not for long, and take note of those that have."""
        pending = [*self._calls, *self._reading]
        if not pending:
            time.sleep(WAIT_SECONDS)  # for the listing
            return
        options: dict[str, Any] = {"fetch_local": False}  # views stay where they are
        ray.wait(pending, num_returns=1, timeout=WAIT_SECONDS, **options)
        ended, _ = ray.wait(pending, num_returns=len(pending), timeout=0, **options)
        for reference in ended:
            if reference in self._calls:
                self._end_call(reference)
            else:
                self._reading.discard(reference)

    def _end_call(self, reference: Any) -> None:
        actor, batch = self._calls.pop(reference)
        try:
            labels = ray.get(reference)
        except RayActorError as error:
            if batch is not None:
                self._unassigned.appendleft(batch)
            if not actor.lost:
                self._replace(actor, error)
            return
        if batch is None:
            self._actors.add(actor)
            self._free.extend([actor] * BATCHES_PER_ACTOR)
            self._limit_readers()
        else:
            actor.deaths = 0
            batch.labels, batch.views = labels, None
            self._free.append(actor)

    def _replace(self, actor: _Actor, error: RayActorError) -> None:
        actor.lost = True
        ray.kill(actor.handle)  # it may only be out of reach, and would keep its GPU
        self._actors.discard(actor)
        if actor.deaths + 1 >= MAX_DEATHS:
            raise error
        self._start_actor(actor.deaths + 1)
        self._limit_readers()

    def _start_actor(self, deaths: int) -> None:
        actor = _Actor(self._new_actor.remote(), deaths)
        self._calls[actor.handle.load.remote(*self._model)] = (actor, None)

    @property
    def _num_actors(self) -> int:
        """The number of actors that have started, but at least 1: reading begins before that."""
        return max(1, len(self._actors))

    def _limit_readers(self) -> None:
        cpus = ray.cluster_resources().get("CPU", 0.0)
        self._max_readers = self._pool.max_readers(self._num_actors, cpus)


def _read(read: Callable[[int, int], Columns], start: int, stop: int) -> Columns:
    """A reading task."""
    return read(start, stop)
