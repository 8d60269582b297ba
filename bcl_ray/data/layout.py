"""Where the rows of a split are: in which shard, row group and position.

Row groups and rows are numbered over the split, with its shards in the manifest's order.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.shards import Manifest, Split
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError

Indices = NDArray[np.int64]

GROUPS_AT_ONCE = 256  # row groups that are located in one call


class Read(NamedTuple):
    """Rows to read from one row group: all of them, or those that a worker uses together."""

    step: int
    """The training step before which the rows are needed; in evaluation, the read's number."""
    shard: int
    """Position of the shard in the manifest."""
    row_group: int
    """Position of the row group in the shard."""
    rows: Indices
    """Positions of the rows in the row group, in the order of use."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Shards and row groups of a split: all that an epoch plan needs of the manifest."""

    shard_rows: Indices
    """Rows of each shard, (shards,)."""
    row_group_rows: int
    """Rows of every row group, except for the last of each shard, which may have fewer."""

    @classmethod
    def of(cls, split: Split) -> "Layout":
        """The layout of a split of a manifest."""
        return cls(split.shards.rows, split.row_group_rows)

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return int(self.first_rows[-1])

    @cached_property
    def first_groups(self) -> Indices:
        """Each shard's first row group, and the number of all row groups, (shards + 1,)."""
        groups = -(-np.asarray(self.shard_rows, dtype=np.int64) // self.row_group_rows)
        return np.concatenate([[0], np.cumsum(groups)])

    @cached_property
    def first_rows(self) -> Indices:
        """Each shard's first row, and the number of all rows, (shards + 1,)."""
        return np.concatenate([[0], np.cumsum(self.shard_rows, dtype=np.int64)])

    def locate(self, groups: Indices) -> tuple[Indices, Indices, Indices, Indices]:
        """Locate row groups of the split.

        Args:
            groups: Row groups, numbered over the split, (n,).

        Returns:
            Shard, row group in the shard, first row in the split, and number of rows, (n,) each.
        """
        shards = np.searchsorted(self.first_groups, groups, side="right") - 1
        groups_in_shard = groups - self.first_groups[shards]
        first = self.first_rows[shards] + groups_in_shard * self.row_group_rows
        sizes = np.minimum(self.row_group_rows, self.first_rows[shards + 1] - first)
        return shards, groups_in_shard, first, sizes

    def positions(self, read: Read) -> Indices:
        """Positions of a read's rows in the split, (rows,)."""
        first: int = self.first_rows[read.shard].item() + read.row_group * self.row_group_rows
        return first + read.rows


def split_layout(
    experiment: Experiment, manifest: Manifest, kind: Literal["training", "evaluation"]
) -> Layout:
    """The layout of the split to train on, or of the one that is evaluated in training.

    Raises:
        ValueError: The manifest has no such split.
    """
    data = experiment.data
    option = "train_split" if kind == "training" else data.monitored_option
    name = getattr(data, option)
    if name not in manifest.splits:
        others = [split for split in manifest.splits if split != data.train_split]
        cut = "`bcl-ray shards hold-out` cuts one"
        remedies = {
            "train_split": "choose one of these",
            "eval_split": f"use data.eval_split={others[0]}" if others else cut,
            "validation_split": f"{cut}, and null is for none",
        }
        raise UserError(
            f"data.{option} is '{name}', which the data set does not have: it has "
            f"{', '.join(manifest.splits)}; {remedies[option]}"
        )
    return Layout.of(manifest.splits[name])


def evaluation_reads(layout: Layout, rank: int = 0, world_size: int = 1) -> Iterator[Read]:
    """A worker's reads for one pass over a split: whole row groups, in order.

    All workers together read every row exactly once. Nothing is stored per row group.
    """
    groups = range(int(layout.first_groups[-1]))

    def owner(group: int) -> int:
        """The worker whose equal share of the rows contains the row group's middle."""
        _, _, first, sizes = layout.locate(np.array([group]))
        return int(min((first[0] + sizes[0] / 2) * world_size // layout.rows, world_size - 1))

    begin, end = (bisect.bisect_left(groups, worker, key=owner) for worker in (rank, rank + 1))
    for start in range(begin, end, GROUPS_AT_ONCE):
        chunk = np.arange(start, min(start + GROUPS_AT_ONCE, end))
        shards, groups_in_shard, _, sizes = layout.locate(chunk)
        columns = (column.tolist() for column in (chunk - begin, shards, groups_in_shard, sizes))
        for step, shard, group, size in zip(*columns, strict=True):
            yield Read(step, shard, group, np.arange(size, dtype=np.int64))
