"""The epoch plan: which rows make which global batch, whoever trains on them.

A pure function of (layout of the shards, seed, epoch, global batch size). The row groups of
the split are permuted and laid end to end; that sequence of rows, less an incomplete last
batch, is cut into lanes of equal length. A global batch takes the next few rows of every
lane, and a worker owns whole lanes. Hence, for every number of workers that divides the
lanes: the same global batches, the same number of equal batches on every worker, contiguous
reads that more workers do not multiply, and a start at any step without reading what came
before. Rows are shuffled inside their row group as well.

How well this mixes: two rows of one row group (R rows, a random sample of the split, as
shards are shuffled when written) meet in a batch with probability about B / (lanes * R),
instead of B / N; rows of different row groups meet as in a perfect shuffle.

Axes: B images of a global batch, L lanes, W workers, G row groups.
"""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Block = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """Where a split's rows lie: all that the plan needs of a manifest.

    Args:
        shard_rows: rows of each shard, in the manifest's order.
        row_group_rows: rows of every row group but a shard's last, which may be smaller.
    """

    shard_rows: tuple[int, ...]
    row_group_rows: int

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return sum(self.shard_rows)

    def row_groups(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Rows of each row group, (G,), and each shard's first row group, (shards + 1,)."""
        rows = np.asarray(self.shard_rows, dtype=np.int64)
        counts = -(-rows // self.row_group_rows)
        first = np.concatenate([[0], np.cumsum(counts)])
        sizes = np.full(first[-1], self.row_group_rows, dtype=np.int32)
        filled = counts > 0
        sizes[first[1:][filled] - 1] = (rows - (counts - 1) * self.row_group_rows)[filled]
        return sizes, first


class Read(NamedTuple):
    """One row group, or the part of it that a lane uses.

    Args:
        step: the first step that needs it.
        lane: the lane that its rows belong to; -1 in evaluation.
        shard: the shard's position in the manifest.
        row_group: the row group's position in the shard.
        rows: positions in the row group, in the order of use.
    """

    step: int
    lane: int
    shard: int
    row_group: int
    rows: npt.NDArray[np.int64]


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
            raise ValueError(
                f"optim.global_batch_size ({global_batch_size}) is more than the training split "
                f"has rows ({layout.rows}): an epoch would have no step; lower it"
            )
        self.lanes = num_lanes(global_batch_size, max_workers)
        self.rows_per_lane_and_step = global_batch_size // self.lanes
        self._key = (seed, epoch)
        self._sizes, self._first_group = layout.row_groups()
        self._order = np.arange(len(self._sizes), dtype=np.int32)
        np.random.default_rng(self._key).shuffle(self._order)
        self._starts = self._lane_starts()

    def reads(self, rank: int = 0, world_size: int = 1, first_step: int = 0) -> Iterator[Read]:
        """What a worker reads from `first_step` on, in the order of need.

        Raises:
            ValueError: a number of workers that does not divide the lanes.
        """
        if self.lanes % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"{world_size} workers cannot share {self.lanes} lanes: scale.workers must "
                f"divide optim.global_batch_size and be at most data.max_workers"
            )
        share = self.lanes // world_size
        mine = range(rank * share, (rank + 1) * share)
        return heapq.merge(
            *(self._lane_reads(lane, first_step) for lane in mine), key=lambda read: read[:2]
        )

    def batches(
        self, blocks: Iterable[Block], rank: int = 0, world_size: int = 1, first_step: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """A worker's batches, cut from the blocks that its `reads` became, in the same order.

        Takes one block per read and no more, so that epochs can share one stream of blocks.
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
            parts = [
                part for lane in lanes for part in _take(queues[lane], self.rows_per_lane_and_step)
            ]
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Positions in the split (shards laid end to end) of one global batch, (B,)."""
        found = []
        for lane in range(self.lanes):
            wanted = self.rows_per_lane_and_step
            for read in self._lane_reads(lane, step):
                found.append(self._positions(read)[:wanted])
                wanted -= len(found[-1])
                if wanted == 0:
                    break
        return np.concatenate(found)

    def _positions(self, read: Read) -> npt.NDArray[np.int64]:
        group = self._first_group[read.shard] + read.row_group
        # All row groups before it are full, but the last one of each earlier shard.
        before = int(self._sizes[:group].sum(dtype=np.int64))
        return before + read.rows

    def _lane_starts(self) -> list[tuple[int, int]]:
        """Where each lane starts: a position in the order of row groups, and rows to skip there.

        In pieces, so that a billion images need no array of 64-bit sums.
        """
        lane_rows = self.steps * self.rows_per_lane_and_step
        starts: list[tuple[int, int]] = []
        total, piece = 0, 2**20
        for begin in range(0, len(self._order), piece):
            ends = total + np.cumsum(self._sizes[self._order[begin : begin + piece]])
            while len(starts) < self.lanes and len(starts) * lane_rows < ends[-1]:
                wanted = len(starts) * lane_rows
                place = int(np.searchsorted(ends, wanted, side="right"))
                skipped = wanted - (int(ends[place - 1]) if place else total)
                starts.append((begin + place, skipped))
            total = int(ends[-1])
        return starts

    def _lane_reads(self, lane: int, first_step: int) -> Iterator[Read]:
        place, skip = self._starts[lane]
        skip += first_step * self.rows_per_lane_and_step
        left = (self.steps - first_step) * self.rows_per_lane_and_step
        position = first_step * self.rows_per_lane_and_step
        while left > 0:
            group = int(self._order[place])
            size = int(self._sizes[group])
            place += 1
            if skip >= size:
                skip -= size
                continue
            shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
            shuffled = np.random.default_rng((*self._key, group)).permutation(size)
            rows = shuffled[skip : skip + left]
            step = position // self.rows_per_lane_and_step
            yield Read(step, lane, shard, group - int(self._first_group[shard]), rows)
            position, left, skip = position + len(rows), left - len(rows), 0


def evaluation_reads(layout: Layout, rank: int = 0, world_size: int = 1) -> Iterator[Read]:
    """A worker's part of every row, once over all workers: whole row groups, in order."""
    sizes, first_group = layout.row_groups()
    middles = np.cumsum(sizes) - sizes / 2
    owner = np.minimum(middles * world_size // layout.rows, world_size - 1)
    for step, group in enumerate(np.flatnonzero(owner == rank)):
        shard = int(np.searchsorted(first_group, group, side="right")) - 1
        row_group = int(group - first_group[shard])
        yield Read(step, -1, shard, row_group, np.arange(sizes[group], dtype=np.int64))


def _take(queue: deque[Block], wanted: int) -> Iterator[Block]:
    """The next `wanted` rows of a lane; what is left of a block goes back to the front."""
    while wanted:
        block = queue.popleft()
        size = len(next(iter(block.values())))
        yield {name: column[:wanted] for name, column in block.items()}
        if size > wanted:
            queue.appendleft({name: column[wanted:] for name, column in block.items()})
        wanted -= min(size, wanted)
