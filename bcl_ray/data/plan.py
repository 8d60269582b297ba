"""The epoch plan: which rows make up which global batch, for any number of workers.

The plan is a pure function of the shards' layout, the seed, the epoch and the global batch size:

1. The row groups of the split are permuted and laid end to end. An incomplete batch at the end of
   this sequence of rows is left out.
2. The sequence is cut into lanes of equal length.
3. A global batch takes the next few rows of every lane, and each worker owns whole lanes.

So for every number of workers that divides the number of lanes, the global batches are the same,
and every worker has the same number of equal batches. A worker's reads are contiguous, so that
more workers do not cause more reads, and training can start at any step without reading what comes
before it. Rows are also shuffled within their row group. Nothing is stored per row group, so that
planning takes no longer for a billion images than for a thousand.

How well this mixes: shards were shuffled when they were written, so the R rows of a row group are
a random sample of the split. Two of them meet in a batch with probability about B / (lanes * R),
instead of B / N in a perfect shuffle: 8 % instead of 2 % for CIFAR-10-LT. Rows of different row
groups, and classes, are mixed as by a perfect shuffle (measured in tests/data/test_plan.py).

Axes: B images of a global batch, N rows of the split.
"""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from bcl_ray.data.layout import Indices, Layout, Read, split_layout
from bcl_ray.data.permutation import Permutation
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError

Block = Mapping[str, np.ndarray]  # columns of some rows; the first axis is the row

GROUPS_AT_ONCE = 256  # row groups that a lane locates in one call


def num_lanes(global_batch_size: int, max_workers: int) -> int:
    """The smallest number of lanes that every allowed number of workers divides.

    Allowed numbers of workers are the divisors of the global batch size up to `max_workers`. The
    number of lanes divides the global batch size too.
    """
    allowed = (d for d in range(1, max_workers + 1) if global_batch_size % d == 0)
    return math.lcm(*allowed)


class EpochPlan:
    """The global batches of one epoch.

    Args:
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, from 0. Every epoch has a different order.
        global_batch_size: B, images per step over all workers.
        max_workers: The largest number of workers that the plan supports.

    Raises:
        ValueError: The split has fewer rows than one global batch.
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
        num_groups = int(layout.first_groups[-1])
        self._order = Permutation(num_groups, self._key)
        self._short_group_ends, self._missing_rows = self._find_short_groups()

    def reads(self, rank: int = 0, world_size: int = 1, first_step: int = 0) -> Iterator[Read]:
        """A worker's reads from `first_step` on, in the order in which it needs them.

        Raises:
            ValueError: The number of workers does not divide the number of lanes.
        """
        if self.lanes % world_size or not 0 <= rank < world_size:
            raise UserError(
                f"worker {rank} of {world_size} has no share of {self.lanes} lanes: scale.workers "
                "must divide optim.global_batch_size and be at most data.max_workers"
            )
        lanes = self._lanes_of(rank, world_size)
        reads = (self._lane_reads(lane, first_step) for lane in lanes)
        return heapq.merge(*reads, key=lambda read: (read.step, read.lane))

    def batches(
        self, blocks: Iterable[Block], rank: int = 0, world_size: int = 1, first_step: int = 0
    ) -> Iterator[list[Block]]:
        """A worker's batches from `first_step` on.

        Args:
            blocks: The rows of each of the worker's `reads`, in the same order. Exactly one block
                per read is taken, so that several epochs can share one stream of blocks.

        Yields:
            The pieces of one batch, which are to be concatenated.
        """
        queues: dict[int, deque[Block]] = defaultdict(deque)
        reads, blocks = self.reads(rank, world_size, first_step), iter(blocks)
        upcoming = next(reads, None)
        for step in range(first_step, self.steps):
            while upcoming is not None and upcoming.step <= step:
                queues[upcoming.lane].append(next(blocks))
                upcoming = next(reads, None)
            yield [
                piece
                for lane in self._lanes_of(rank, world_size)
                for piece in _take(queues[lane], self.rows_per_lane_and_step)
            ]

    def rows(self, step: int) -> Indices:
        """Positions in the split of the rows of one global batch, (B,)."""
        pieces: list[Indices] = []
        for lane in range(self.lanes):
            remaining = self.rows_per_lane_and_step
            for read in self._lane_reads(lane, step):
                pieces.append(self.layout.positions(read)[:remaining])
                remaining -= len(pieces[-1])
                if remaining == 0:
                    break
        return np.concatenate(pieces)

    def _lanes_of(self, rank: int, world_size: int) -> range:
        share = self.lanes // world_size
        return range(rank * share, (rank + 1) * share)

    def _find_short_groups(self) -> tuple[Indices, Indices]:
        """Find the short row groups, which are not full, in the order of the epoch.

        A row group of r rows lacks row_group_rows - r rows.

        Returns:
            For each of the n short row groups, the number of rows of the sequence up to its end,
            (n,); and how many rows the first 0, 1, ..., n of them lack in total, (n + 1,).
        """
        full, first = self.layout.row_group_rows, self.layout.first_groups
        last = first[1:][np.diff(first) > 0] - 1  # the last row group of each shard with rows
        _, _, _, sizes = self.layout.locate(last)
        is_short = sizes < full
        positions = self._order.positions(last[is_short])
        by_position = np.argsort(positions)
        missing = np.concatenate([[0], np.cumsum(full - sizes[is_short][by_position])])
        return (positions[by_position] + 1) * full - missing[1:], missing

    def _locate_row(self, row: int) -> tuple[int, int]:
        """The row group that contains a row of the sequence, and the rows before it in the group.

        The row group is given by its position in the order of the epoch.
        """
        # If all row groups were full, this would be a division. So count the rows that the row
        # groups before this row lack as if they were there.
        short_groups_before = np.searchsorted(self._short_group_ends, row, side="right")
        missing = int(self._missing_rows[short_groups_before])
        return divmod(row + missing, self.layout.row_group_rows)

    def _lane_reads(self, lane: int, first_step: int) -> Iterator[Read]:
        """The reads of one lane from `first_step` on."""
        per_step = self.rows_per_lane_and_step
        lane_rows = self.steps * per_step
        row = first_step * per_step  # the next row to read, counted within the lane
        # Position of its row group in the order of the epoch, and the rows before it in the group.
        position, skip = self._locate_row(lane * lane_rows + row)
        while row < lane_rows:
            next_position = min(position + GROUPS_AT_ONCE, self._order.size)
            groups = self._order.at(np.arange(position, next_position))
            shards, groups_in_shard, _, sizes = self.layout.locate(groups)
            position = next_position
            for group, shard, group_in_shard, size in zip(
                *(column.tolist() for column in (groups, shards, groups_in_shard, sizes)),
                strict=True,
            ):
                shuffled = np.random.default_rng((*self._key, group)).permutation(size)
                rows = shuffled[skip : skip + lane_rows - row]
                yield Read(row // per_step, lane, shard, group_in_shard, rows)
                row, skip = row + len(rows), 0
                if row == lane_rows:
                    return


def _take(queue: deque[Block], rows: int) -> Iterator[Block]:
    """Take rows from the blocks of a lane; the rest of a block goes back to the front."""
    while rows:
        block = queue.popleft()
        size = len(next(iter(block.values())))
        yield {name: column[:rows] for name, column in block.items()}
        if size > rows:
            queue.appendleft({name: column[rows:] for name, column in block.items()})
        rows -= min(size, rows)


def epoch_plan(experiment: Experiment, manifest: Manifest, epoch: int) -> EpochPlan:
    """The plan of one epoch of an experiment.

    Raises:
        ValueError: The data set has no such split, or too few rows for one global batch.
    """
    return EpochPlan(
        split_layout(experiment, manifest, "train_split"),
        seed=experiment.train.seed,
        epoch=epoch,
        global_batch_size=experiment.optim.global_batch_size,
        max_workers=experiment.data.max_workers,
    )
