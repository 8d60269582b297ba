"""The rows of an epoch in one sequence: row groups in random order, each with its rows shuffled.

Nothing is stored per row group, so that a billion images take no longer than a thousand.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bcl_ray.data.layout import GROUPS_AT_ONCE, Indices, Layout
from bcl_ray.data.permutation import Permutation


class Group(NamedTuple):
    """A row group in the sequence."""

    number: int
    """Its number in the split."""
    shard: int
    """Position of its shard in the manifest."""
    row_group: int
    """Position in the shard."""
    begin: int
    """Its first row in the sequence."""
    end: int
    """The row of the sequence after its last one."""


class RowSequence:
    """The rows of one epoch, laid end to end.

    Args:
        layout: The split's shards and row groups; has at least one row.
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, from 0.
    """

    def __init__(self, layout: Layout, *, seed: int, epoch: int) -> None:
        self.layout = layout
        self._key = (seed, epoch)
        self._order = Permutation(int(layout.first_groups[-1]), self._key)
        self._short_group_ends, self._missing_rows = self._find_short_groups()

    def groups(self, begin: int, end: int) -> Iterator[Group]:
        """The row groups of the rows from `begin` to `end` of the sequence, in order."""
        position, skipped = self._locate_row(begin)
        first = begin - skipped  # first row of the next row group
        while first < end:
            # At least so many; more if some of them are short.
            full_groups = -(-(end - first) // self.layout.row_group_rows)
            count = min(full_groups, GROUPS_AT_ONCE, self._order.size - position)
            group_ids = self._order.at(np.arange(position, position + count))
            shards, groups_in_shard, _, sizes = self.layout.locate(group_ids)
            ends = first + np.cumsum(sizes)
            columns = (group_ids, shards, groups_in_shard, ends - sizes, ends)
            for row in zip(*(column.tolist() for column in columns), strict=True):
                group = Group(*row)
                if group.begin >= end:
                    return
                yield group
            position, first = position + count, int(ends[-1])

    def shuffled(self, group: Group) -> Indices:
        """The rows of a row group in the sequence's order, as positions in the row group."""
        rng = np.random.default_rng((*self._key, group.number))
        return rng.permutation(group.end - group.begin)

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
