"""Lanes: how the sequence of an epoch's rows becomes global batches, by version of the plan.

A lane is a part of every global batch, always with the same number of rows, and belongs to one
worker. The versions differ in which rows of the sequence a lane has, and in what order a worker
reads them.

Axes: B images of a global batch, R rows of a full row group.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from bcl_ray.data.layout import Read
from bcl_ray.data.sequence import RowSequence


class LaneRead(NamedTuple):
    """A read, and how many of its rows, in order, each lane gets."""

    read: Read
    shares: list[tuple[int, int]]
    """Lanes, each with its number of rows."""


class Lanes(Protocol):
    """The lanes of an epoch."""

    count: int
    """How many; every allowed number of workers divides it, and it divides B."""
    open_rows: int
    """About the largest number of rows that all workers together hold at one time."""

    def of_worker(self, rank: int, world_size: int) -> range:
        """A worker's lanes."""

    def reads(self, lanes: range, first_step: int, *, ramp: bool) -> Iterator[LaneRead]:
        """The reads of a worker's lanes, in the order of need; see `EpochPlan.reads`."""


class ContiguousLanes:
    """Version 1: each lane has one contiguous part of the sequence, some rows of it at each step.

    There are as few lanes as possible, and few row groups are open: one for each lane. But the rows
    of a row group meet often: B / lanes of them in every batch.

    Args:
        sequence: The rows of the epoch.
        steps: Steps of the epoch.
        global_batch_size: B.
        max_workers: The largest number of workers; allowed ones also divide B.
    """

    def __init__(
        self, sequence: RowSequence, steps: int, global_batch_size: int, max_workers: int
    ) -> None:
        allowed = (d for d in range(1, max_workers + 1) if global_batch_size % d == 0)
        self.count = math.lcm(*allowed)
        self.open_rows = self.count * sequence.layout.row_group_rows
        self._sequence, self._steps = sequence, steps
        self._per_step = global_batch_size // self.count

    def of_worker(self, rank: int, world_size: int) -> range:
        """Neighbouring lanes."""
        return _neighbours(self.count, rank, world_size)

    def reads(self, lanes: range, first_step: int, *, ramp: bool) -> Iterator[LaneRead]:  # noqa: ARG002
        """The reads of all lanes, in the order of the steps that need them.

        `ramp` changes nothing: the first batch needs one row group per lane in any case.
        """
        by_lane = (self._lane_reads(lane, first_step) for lane in lanes)
        return heapq.merge(*by_lane, key=lambda one: (one.read.step, one.shares[0][0]))

    def _lane_reads(self, lane: int, first_step: int) -> Iterator[LaneRead]:
        lane_begin, lane_end = (n * self._steps * self._per_step for n in (lane, lane + 1))
        first = lane_begin + first_step * self._per_step
        for group in self._sequence.groups(first, lane_end):
            row = max(group.begin, first)
            rows = self._sequence.shuffled(group)[row - group.begin : lane_end - group.begin]
            step = (row - lane_begin) // self._per_step
            yield LaneRead(Read(step, group.shard, group.row_group, rows), [(lane, len(rows))])


class WindowedLanes:
    """Version 2: B lanes of one row a step, which begin anew in every window of R steps or more.

    A window of S steps has the next B * S rows of the sequence: lane j has rows j * S to
    (j + 1) * S of them, and step s takes row s of every lane. Two rows that meet in a batch are a
    multiple of S apart in the sequence. Two rows of one row group are less than R apart. So rows of
    one row group never meet while S >= R. An epoch of fewer than R steps is one window, in which
    the rows of a row group meet in a batch. They are in neighbouring lanes, which are then dealt
    out to the workers in turn (`of_worker`), so that as few as possible meet in one worker.

    The price is memory: when a window begins, all of it has been read, and the next one is read
    while it is used. A row group is read again where two workers or two windows meet in it.

    Args:
        sequence, steps, global_batch_size: As of `ContiguousLanes`; `_max_workers` is ignored, and
            is there for VERSIONS.
    """

    def __init__(
        self, sequence: RowSequence, steps: int, global_batch_size: int, _max_workers: int
    ) -> None:
        self.count = global_batch_size
        self._sequence, self._steps = sequence, steps
        rows = sequence.layout.row_group_rows
        self.never_meet = steps >= rows
        """Whether rows of one row group never meet in a global batch."""
        self._windows = max(1, steps // rows)
        self.open_rows = 2 * global_batch_size * -(-steps // self._windows)

    def of_worker(self, rank: int, world_size: int) -> range:
        """Neighbouring lanes, which share row groups; distant ones if rows would meet."""
        if self.never_meet:
            return _neighbours(self.count, rank, world_size)
        return range(rank, self.count, world_size)

    def reads(self, lanes: range, first_step: int, *, ramp: bool) -> Iterator[LaneRead]:
        """The reads of one window after another, lane by lane.

        With `ramp` the rest of the first window is read in parts of 1, 4, 16, ... steps, so that
        the first batch does not wait for all of it; row groups of these parts are read repeatedly.
        """
        # The last window that begins at first_step or before it; window w begins at
        # floor(steps * w / windows).
        first_window = -(-self._windows * (first_step + 1) // self._steps) - 1
        for window in range(first_window, self._windows):
            begin, end = (self._steps * w // self._windows for w in (window, window + 1))
            part_begin, part_steps = max(begin, first_step), 1 if ramp else end - begin
            while part_begin < end:
                part = range(part_begin, min(part_begin + part_steps, end))
                yield from self._part_reads(range(begin, end), part, lanes)
                part_begin, part_steps = part.stop, 4 * part_steps
            ramp = False

    def _part_reads(self, window: range, part: range, lanes: range) -> Iterator[LaneRead]:
        """The reads of the steps `part` of a window, for some lanes."""
        window_steps, base = len(window), window.start * self.count
        offsets = (part.start - window.start, part.stop - window.start)
        first, last = base + lanes[0] * window_steps, base + (lanes[-1] + 1) * window_steps
        for group in self._sequence.groups(first, last):
            rows = range(max(group.begin, first), min(group.end, last))
            pieces = []  # of the row group: lane, begin and end of the rows of the part
            first_lane, last_lane = ((row - base) // window_steps for row in (rows[0], rows[-1]))
            for lane in range(first_lane, last_lane + 1):
                lane_begin = base + lane * window_steps
                begin = max(rows.start, lane_begin + offsets[0])
                end = min(rows.stop, lane_begin + offsets[1])
                if begin < end and lane in lanes:
                    pieces.append((lane, begin - group.begin, end - group.begin))
            if pieces:
                order = self._sequence.shuffled(group)
                chosen = np.concatenate([order[begin:end] for _, begin, end in pieces])
                read = Read(part.start, group.shard, group.row_group, chosen)
                yield LaneRead(read, [(lane, end - begin) for lane, begin, end in pieces])


def _neighbours(lanes: int, rank: int, world_size: int) -> range:
    share = lanes // world_size
    return range(rank * share, (rank + 1) * share)


VERSIONS: dict[int, Callable[[RowSequence, int, int, int], Lanes]]
VERSIONS = {1: ContiguousLanes, 2: WindowedLanes}
"""The lanes of each version of the plan, by the value of data.plan."""
