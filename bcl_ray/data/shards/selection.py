"""Which rows of a split are written: those that its profile selects, and that are not bad.

A row that turns out to be bad is replaced by the next one of its class, so that classes have the
sizes of the profile. Where a class has no more rows, the profile is computed for those that it has.

Axes: N rows of the split, K classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.longtail import class_counts_for, select_rows
from bcl_ray.data.shards.attempt import ShardWork
from bcl_ray.data.shards.checking import CheckedRows, CheckTask, check_images, parse_check
from bcl_ray.data.shards.manifest import ProfileInfo
from bcl_ray.data.shards.options import ShardOptions
from bcl_ray.data.sources import Rows, Source, SourceSplit
from bcl_ray.machine.errors import UserError

# A part is what one task checks, and records as a whole. A split has about PARTS of them, but with
# MIN_ROWS rows or more, so that a task takes longer than its start, and MAX_ROWS or fewer, so that
# a kill costs little work.
PARTS, MIN_ROWS, MAX_ROWS = 1024, 256, 16_384


class ImageFault(NamedTuple):
    """A row that cannot be used, and why."""

    row: int
    label: int
    where: str
    fault: str


class Selection:
    """The selected rows of a split, as far as it is known which ones are bad.

    Args:
        source: The source; its split `name` is meant.
        name: Name of the split. The profile selects rows of `train` only; other splits keep all
            rows that are not bad.
        profile: The profile.

    Raises:
        ValueError: Ids occur more than once, or the profile does not fit the split's labels.
    """

    def __init__(self, source: Source, name: str, profile: ProfileInfo) -> None:
        self.name, self.split = name, source.splits[name]
        self.profile, self.class_names = profile, source.class_names
        self._faults_before_reading = faults_before_reading(self.split, len(source.class_names))
        self._labels = self.split.labels.copy()
        self._labels[list(self._faults_before_reading)] = -1
        self.checked = CheckedRows(len(self._labels))
        self._rounds = 0
        self.rows: Rows
        self._select()

    def _select(self) -> None:
        bad = self.checked.is_bad
        usable = ~bad & (self._labels >= 0)
        # A split or a class may be empty because its rows are bad: the message names one of them.
        hint = next((f"; a bad row, {fault.where}: {fault.fault}" for fault in self.faults()), "")
        if not usable.any():
            raise UserError(f"split '{self.name}' has no images: leave it out of the source{hint}")
        self.rows = np.flatnonzero(usable)
        if self.name != "train":
            return
        available = np.bincount(self._labels[usable], minlength=len(self.class_names))
        _check_classes(available, self.class_names, hint)
        counts = class_counts_for(
            self.profile.name,
            available,
            imbalance_factor=self.profile.imbalance_factor,
            max_per_class=self.profile.max_per_class,
        )
        self.rows = select_rows(
            self._labels,
            counts,
            seed=self.profile.seed,
            already_shuffled=self.split.already_shuffled,
            bad=bad,
        )

    def check(self, work: ShardWork, options: ShardOptions) -> None:
        """Check the selected rows, and those that replace the bad ones.

        If bad rows are to stop the work, none is replaced, since they are going to be an error.
        """
        while len(rows := self.rows[self.checked.sizes[self.rows] < 0]):
            self._check_round(rows, work, options.max_pixels)
            if options.on_bad_image == "stop" and self.checked.faults:
                return
            self._select()

    def _check_round(self, rows: Rows, work: ShardWork, max_pixels: int) -> None:
        size = max(self.split.least_rows, min(max(len(rows) // PARTS, MIN_ROWS), MAX_ROWS))
        parts = {
            f"{self.name}-{self._rounds}-{start // size:05d}": rows[start : start + size]
            for start in range(0, len(rows), size)
        }
        self._rounds += 1
        copies = not self.split.random_access

        def task_of(part: str) -> CheckTask:
            return CheckTask(work.attempt, part, self.split.read(parts[part]), max_pixels, copies)

        done = int((self.checked.sizes >= 0).sum())
        total = done + len(rows)
        for part, table in work.results("checked", parts, task_of, check_images, parse_check):
            self.checked.add(part, parts[part], table)
            done += len(parts[part])
            work.progress(f"reading {self.name}", done, total)

    def faults(self) -> Iterator[ImageFault]:
        """The faults that are known, by row."""
        known = self._faults_before_reading | self.checked.faults
        for row in sorted(known):
            label = int(self.split.labels[row])
            yield ImageFault(row, label, self.split.where(row), known[row])

    @property
    def num_faults(self) -> int:
        """The number of faults that are known."""
        return len(self._faults_before_reading) + len(self.checked.faults)

    @property
    def num_judged(self) -> int:
        """The number of rows that were read, or have a fault that shows without that."""
        return int((self.checked.sizes >= 0).sum()) + len(self._faults_before_reading)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the selected rows, (n,)."""
        return self._labels[self.rows]


def faults_before_reading(split: SourceSplit, num_classes: int) -> dict[int, str]:
    """Faults by row that are found without reading images: unparsable rows, and invalid labels.

    Raises:
        ValueError: Ids occur more than once, so that it is unclear which row is the right one.
    """
    if split.ids is not None:
        ids, first, times = np.unique(split.ids, return_index=True, return_counts=True)
        repeated = np.flatnonzero(times > 1)
        if repeated.size:
            shown = ", ".join(
                f"{ids[i]} ({times[i]} times, first in {split.where(int(first[i]))})"
                for i in repeated[:10]
            )
            raise UserError(f"{repeated.size} ids occur more than once: {shown}")
    outside = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
    faults = {
        row: f"label {split.labels[row]} is outside 0..{num_classes - 1}"
        for row in outside.tolist()
    }
    return faults | dict(split.faults)


def _check_classes(
    class_counts: NDArray[np.int64], class_names: tuple[str, ...], hint: str
) -> None:
    empty = np.flatnonzero(class_counts == 0)
    if empty.size:
        names = ", ".join(f"{label} ({class_names[label]})" for label in empty[:10])
        raise UserError(
            f"{empty.size} of {len(class_counts)} classes have no training images: {names}; add "
            f"images, or remove the classes from the source{hint}"
        )
