"""Where the rows of a split lie: shards laid end to end, and the row groups in each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bcl_ray.data.shards import Manifest, Split
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where a split's rows lie: all that the plan needs of a manifest.

    Args:
        shard_rows: rows of each shard, in the manifest's order.
        row_group_rows: rows of every row group but a shard's last, which may be smaller.
    """

    shard_rows: tuple[int, ...]
    row_group_rows: int

    @classmethod
    def of(cls, split: Split) -> "Layout":
        """The layout of a split of a manifest."""
        return cls(tuple(shard.rows for shard in split.shards), split.row_group_rows)

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return sum(self.shard_rows)

    @cached_property
    def first_groups(self) -> npt.NDArray[np.int64]:
        """Number of each shard's first row group, counted over the split, (shards + 1,)."""
        groups = -(-np.asarray(self.shard_rows, dtype=np.int64) // self.row_group_rows)
        return np.concatenate([[0], np.cumsum(groups)])

    @cached_property
    def first_rows(self) -> npt.NDArray[np.int64]:
        """Position of each shard's first row in the split, (shards + 1,)."""
        return np.concatenate([[0], np.cumsum(self.shard_rows, dtype=np.int64)])

    def locate(self, groups: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
        """Shard, row group in the shard, first row in the split, and rows, of row groups (n,)."""
        shards = np.searchsorted(self.first_groups, groups, side="right") - 1
        inner = groups - self.first_groups[shards]
        first = self.first_rows[shards] + inner * self.row_group_rows
        sizes = np.minimum(self.row_group_rows, self.first_rows[shards + 1] - first)
        return shards, inner, first, sizes

    def positions(self, read: "Read") -> npt.NDArray[np.int64]:
        """Positions in the split (shards laid end to end) of a read's rows, (rows,)."""
        first: int = self.first_rows[read.shard].item() + read.row_group * self.row_group_rows
        return first + read.rows


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


def split_layout(
    experiment: Experiment, manifest: Manifest, option: Literal["train_split", "eval_split"]
) -> Layout:
    """The layout of the split that an option of `data` names.

    Raises:
        ValueError: The manifest has no such split.
    """
    name = getattr(experiment.data, option)
    if name not in manifest.splits:
        raise UserError(
            f"data.{option} is '{name}', which the data set does not have: it has "
            f"{', '.join(manifest.splits)}"
        )
    return Layout.of(manifest.splits[name])


def evaluation_reads(layout: Layout, rank: int = 0, world_size: int = 1) -> Iterator[Read]:
    """A worker's part of every row, once over all workers: whole row groups, in order."""
    shards, inner, first, sizes = layout.locate(np.arange(layout.first_groups[-1]))
    middles = first + sizes / 2
    owners = np.minimum(middles * world_size // layout.rows, world_size - 1)
    for step, group in enumerate(np.flatnonzero(owners == rank)):
        rows = np.arange(sizes[group], dtype=np.int64)
        yield Read(step, -1, int(shards[group]), int(inner[group]), rows)
