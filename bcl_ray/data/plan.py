"""The epoch plan: which rows make up which global batch, for any number of workers.

The plan is a pure function of the shards' layout, the seed, the epoch, the global batch size and
the plan's version (in version 1 also of data.max_workers):

1. The row groups of the split are permuted and laid end to end, with their rows shuffled
   (`sequence`). An incomplete batch at the end of this sequence of rows is left out.
2. The sequence is cut into lanes (`lanes`), in a way that depends on the version of the plan.
3. A global batch takes the next rows of every lane, and each worker owns whole lanes.

So for every number of workers that divides the number of lanes, the global batches have the same
rows, and every worker has the same number of equal batches. Training can start at any step without
reading what comes before it.

How well this mixes is measured in tests/data/test_plan.py. Classes are mixed as by a perfect
shuffle. Shards were shuffled when they were written, so the rows of a row group are a random sample
of the split. In version 2, two of them never meet in a batch if an epoch has as many steps as a row
group has rows; otherwise they meet in a step of a worker at most twice as often as by chance. In
version 1 they met 4 times as often in batches of CIFAR-10-LT, and a thousand times in those of
ImageNet-LT on 64 workers.

Axes: B images of a global batch, N rows of the split.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from bcl_ray.data.lanes import VERSIONS
from bcl_ray.data.layout import Indices, Layout, Read, split_layout
from bcl_ray.data.sequence import RowSequence
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError

Block = Mapping[str, np.ndarray]  # columns of some rows; the first axis is the row


class EpochPlan:
    """The global batches of one epoch.

    Args:
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, from 0. Every epoch has a different order.
        global_batch_size: B, images per step over all workers.
        max_workers: The largest number of workers that version 1 supports.
        version: Version of the plan, see `lanes`.

    Raises:
        ValueError: The split has fewer rows than one global batch.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        seed: int,
        epoch: int,
        global_batch_size: int,
        max_workers: int,
        version: int = 2,
    ) -> None:
        self.steps = layout.rows // global_batch_size
        if self.steps == 0:
            raise UserError(
                f"optim.global_batch_size ({global_batch_size}) is more than the training split "
                f"has rows ({layout.rows}): an epoch would have no step; lower it"
            )
        self.layout = layout
        sequence = RowSequence(layout, seed=seed, epoch=epoch)
        self._cut = VERSIONS[version](sequence, self.steps, global_batch_size, max_workers)
        self.num_lanes = self._cut.count
        self.rows_per_lane_and_step = global_batch_size // self.num_lanes
        self.open_rows = self._cut.open_rows
        """About the largest number of rows that all workers together hold at one time."""

    def reads(
        self, rank: int = 0, world_size: int = 1, first_step: int = 0, *, ramp: bool = False
    ) -> Iterator[Read]:
        """A worker's reads from `first_step` on, in the order in which it needs them.

        Args:
            ramp: Whether the first batch must come soon, at the cost of some more reads.

        Raises:
            ValueError: The number of workers does not divide the number of lanes.
        """
        own_lanes = self._lanes_of(rank, world_size)
        return (lane_read.read for lane_read in self._cut.reads(own_lanes, first_step, ramp=ramp))

    def batches(
        self,
        blocks: Iterable[Block],
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        *,
        ramp: bool = False,
    ) -> Iterator[list[Block]]:
        """A worker's batches from `first_step` on.

        Args:
            blocks: The rows of each of the worker's `reads`, in the same order and with the same
                `ramp`. Exactly one block per read is taken, so that several epochs can share one
                stream of blocks.

        Yields:
            The pieces of one batch, which are to be concatenated.
        """
        own_lanes, blocks = self._lanes_of(rank, world_size), iter(blocks)
        queues: dict[int, deque[tuple[Block, int, int]]] = {lane: deque() for lane in own_lanes}
        reads = self._cut.reads(own_lanes, first_step, ramp=ramp)
        upcoming = next(reads, None)
        for step in range(first_step, self.steps):
            while upcoming is not None and upcoming.read.step <= step:
                block, begin = next(blocks), 0
                for lane, rows in upcoming.shares:
                    queues[lane].append((block, begin, begin + rows))
                    begin += rows
                upcoming = next(reads, None)
            yield [
                piece
                for lane in own_lanes
                for piece in _take(queues[lane], self.rows_per_lane_and_step)
            ]

    def rows(self, step: int) -> Indices:
        """Positions in the split of the rows of one global batch, (B,).

        They are in the order that a single worker would have.
        """
        blocks = (  # with ramp, as little as possible is read
            {"rows": self.layout.positions(read)} for read in self.reads(first_step=step, ramp=True)
        )
        pieces = next(self.batches(blocks, first_step=step, ramp=True))
        return np.concatenate([piece["rows"] for piece in pieces])

    def _lanes_of(self, rank: int, world_size: int) -> range:
        if self.num_lanes % world_size or not 0 <= rank < world_size:
            raise UserError(
                f"worker {rank} of {world_size} has no share of {self.num_lanes} lanes: "
                "scale.workers must divide optim.global_batch_size, and be at most "
                "data.max_workers if data.plan is 1"
            )
        return self._cut.of_worker(rank, world_size)


def _take(queue: deque[tuple[Block, int, int]], rows: int) -> list[Block]:
    """Take rows of a lane from the parts of blocks (block, begin, end) that are next."""
    pieces: list[Block] = []
    while rows:
        block, begin, end = queue.popleft()
        stop = min(begin + rows, end)
        pieces.append({name: column[begin:stop] for name, column in block.items()})
        if stop < end:
            queue.appendleft((block, stop, end))
        rows -= stop - begin
    return pieces


def epoch_plan(experiment: Experiment, manifest: Manifest, epoch: int) -> EpochPlan:
    """The plan of one epoch of an experiment.

    Raises:
        ValueError: The data set has no such split, or too few rows for one global batch.
    """
    return EpochPlan(
        split_layout(experiment, manifest, "training"),
        seed=experiment.train.seed,
        epoch=epoch,
        global_batch_size=experiment.optim.global_batch_size,
        max_workers=experiment.data.max_workers,
        version=experiment.data.plan,
    )
