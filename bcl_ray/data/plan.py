"""The epoch plan: which rows make which global batch, whoever trains on them.

A pure function of (layout of the shards, seed, epoch, global batch size). The row groups of
the split are permuted and laid end to end; that sequence of rows, less an incomplete last
batch, is cut into lanes of equal length. A global batch takes the next few rows of every
lane, and a worker owns whole lanes. Hence, for every number of workers that divides the
lanes: the same global batches, the same number of equal batches on every worker, contiguous
reads that more workers do not multiply, and a start at any step without reading what came
before. Rows are shuffled inside their row group as well. Nothing is stored per row group, so
that a billion images are planned as fast as a thousand.

How well this mixes: two rows of one row group (R rows, a random sample of the split, as
shards are shuffled when written) meet in a batch with probability about B / (lanes * R),
instead of B / N: 8 % instead of 2 % for CIFAR-10-LT. Rows of different row groups meet as in
a perfect shuffle, and so do classes (measured in tests/data/test_plan.py).

Axes: B images of a global batch, L lanes, W workers, G row groups.
"""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from bcl_ray.data.layout import Layout, Read, split_layout
from bcl_ray.data.permutation import Permutation
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError

Block = Mapping[str, np.ndarray]

LOOKED_UP = 256  # row groups that a lane looks up at once


def num_lanes(global_batch_size: int, max_workers: int) -> int:
    """The fewest lanes that every allowed number of workers divides.

    Allowed are the divisors of the global batch size up to `max_workers`; the lanes divide the
    global batch size too.
    """
    allowed = (d for d in range(1, max_workers + 1) if global_batch_size % d == 0)
    return math.lcm(*allowed)


class EpochPlan:
    """The global batches of one epoch.

    Args:
        layout: the shards of the training split.
        seed: seed of the run, >= 0.
        epoch: number of the epoch, >= 0; each has an order of its own.
        global_batch_size: B, images per step over all workers.
        max_workers: the plan serves every number of workers up to this that divides B.

    Raises:
        ValueError: fewer rows than one global batch.
    """

    def __init__(
        self, layout: Layout, *, seed: int, epoch: int, global_batch_size: int, max_workers: int
    ) -> None:
        self.steps = layout.rows // global_batch_size
        if self.steps == 0:
            raise UserError(
                f"optim.global_batch_size ({global_batch_size}) is more than the training split "
                f"has rows ({layout.rows}): an epoch would have no step; lower it"
            )
        self.lanes = num_lanes(global_batch_size, max_workers)
        self.rows_per_lane_and_step = global_batch_size // self.lanes
        self.layout = layout
        self._key = (seed, epoch)
        self._order = Permutation(int(layout.first_groups[-1]), self._key)
        self._short, self._missing = self._short_groups()

    def reads(self, rank: int = 0, world_size: int = 1, first_step: int = 0) -> Iterator[Read]:
        """What a worker reads from `first_step` on, in the order of need.

        Raises:
            ValueError: a number of workers that does not divide the lanes.
        """
        if self.lanes % world_size or not 0 <= rank < world_size:
            raise UserError(
                f"worker {rank} of {world_size} has no share of {self.lanes} lanes: scale.workers "
                "must divide optim.global_batch_size and be at most data.max_workers"
            )
        share = self.lanes // world_size
        mine = range(rank * share, (rank + 1) * share)
        return heapq.merge(
            *(self._lane_reads(lane, first_step) for lane in mine), key=lambda read: read[:2]
        )

    def batches(
        self, blocks: Iterable[Block], rank: int = 0, world_size: int = 1, first_step: int = 0
    ) -> Iterator[list[Block]]:
        """A worker's batches, cut from the blocks that its `reads` became, in the same order.

        Each is a list of pieces, to be laid end to end where the batch is to be. Takes one block
        per read and no more, so that epochs can share one stream of blocks.
        """
        share = self.lanes // world_size
        lanes = range(rank * share, (rank + 1) * share)
        queues: dict[int, deque[Block]] = defaultdict(deque)
        reads, blocks = self.reads(rank, world_size, first_step), iter(blocks)
        upcoming = next(reads, None)
        for step in range(first_step, self.steps):
            while upcoming is not None and upcoming.step <= step:
                queues[upcoming.lane].append(next(blocks))
                upcoming = next(reads, None)
            yield [
                part for lane in lanes for part in _take(queues[lane], self.rows_per_lane_and_step)
            ]

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Positions in the split (shards laid end to end) of one global batch, (B,)."""
        found: list[npt.NDArray[np.int64]] = []
        for lane in range(self.lanes):
            wanted = self.rows_per_lane_and_step
            for read in self._lane_reads(lane, step):
                found.append(self.layout.positions(read)[:wanted])
                wanted -= len(found[-1])
                if wanted == 0:
                    break
        return np.concatenate(found)

    def _short_groups(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The row groups that are not full, in the order of the epoch.

        Returns:
            where each ends in the sequence of rows, and rows missing up to there, from 0 on.
        """
        full, first = self.layout.row_group_rows, self.layout.first_groups
        last = first[1:][np.diff(first) > 0] - 1  # a shard may be empty
        _, _, _, sizes = self.layout.locate(last)
        short = sizes < full
        places = self._order.places(last[short])
        by_place = np.argsort(places)
        missing = np.concatenate([[0], np.cumsum(full - sizes[short][by_place])])
        return (places[by_place] + 1) * full - missing[1:], missing

    def _find(self, row: int) -> tuple[int, int]:
        """Where a row of the sequence lies: a place in the order, and rows before it there."""
        missing = int(self._missing[np.searchsorted(self._short, row, side="right")])
        return divmod(row + missing, self.layout.row_group_rows)

    def _lane_reads(self, lane: int, first_step: int) -> Iterator[Read]:
        per_step = self.rows_per_lane_and_step
        position, end = first_step * per_step, self.steps * per_step
        place, skip = self._find(lane * end + position)
        while position < end:
            until = min(place + LOOKED_UP, self._order.size)
            groups = self._order.at(np.arange(place, until))
            shards, inner, _, sizes = self.layout.locate(groups)
            place = until
            for group, shard, row_group, size in zip(
                *(column.tolist() for column in (groups, shards, inner, sizes)), strict=True
            ):
                shuffled = np.random.default_rng((*self._key, group)).permutation(size)
                rows = shuffled[skip : skip + end - position]
                yield Read(position // per_step, lane, shard, row_group, rows)
                position, skip = position + len(rows), 0
                if position == end:
                    return


def _take(queue: deque[Block], wanted: int) -> Iterator[Block]:
    """The next `wanted` rows of a lane; what is left of a block goes back to the front."""
    while wanted:
        block = queue.popleft()
        size = len(next(iter(block.values())))
        yield {name: column[:wanted] for name, column in block.items()}
        if size > wanted:
            queue.appendleft({name: column[wanted:] for name, column in block.items()})
        wanted -= min(size, wanted)


def epoch_plan(experiment: Experiment, manifest: Manifest, epoch: int) -> EpochPlan:
    """The plan of one epoch of an experiment."""
    return EpochPlan(
        split_layout(experiment, manifest, "train_split"),
        seed=experiment.train.seed,
        epoch=epoch,
        global_batch_size=experiment.optim.global_batch_size,
        max_workers=experiment.data.max_workers,
    )
