"""Data tasks: they read, decode and crop images; this module needs neither Ray nor torch.

Axes: N images of a task, V contrastive views, H = W = views.image_size.
"""

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bcl_ray.data.layout import Read
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views import host
from bcl_ray.experiment.options import Experiment
from bcl_ray.runs.budget import TASK_BYTES
from bcl_ray.storage import files

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class TaskSource:
    """The shards of one split, and the views to make of their images; every task gets it."""

    path: str
    """Folder or URI of the shards."""
    files: Sequence[str]
    """Names of the shards' files, in the manifest's order."""
    experiment: Experiment
    """Options of the views, and the seed."""
    training: bool
    """Whether to make random views; otherwise each image has the one view of evaluation."""

    def load(self, epoch: int, reads: Iterable[Read]) -> Batch:
        """Read, decode and crop rows.

        Returns:
            `views` uint8 (N, 1 + V, H, W, 3), or (N, 1, H, W, 3) in evaluation; `labels` and `ids`
            int64 (N,).
        """
        tables = [
            read_row_group(files.join(self.path, self.files[read.shard]), read.row_group).take(
                read.rows
            )
            for read in reads
        ]
        columns = {
            name: np.concatenate([table[name].to_numpy() for table in tables])
            for name in ("id", "label")
        }
        images = [image for table in tables for image in table["image"].to_pylist()]
        views, ids = self.experiment.views, columns["id"]
        if self.training:
            pixels = host.train_views(
                images,
                ids,
                views,
                num_contrastive=self.experiment.num_contrastive,
                seed=self.experiment.train.seed,
                epoch=epoch,
            )
        else:
            pixels = host.eval_views(images, views, ids=ids)
        return {"views": pixels, "labels": columns["label"].astype(np.int64), "ids": ids}


def source_of(experiment: Experiment, manifest: Manifest, *, training: bool) -> TaskSource:
    """The source of the training split's tasks, or of the evaluation split's."""
    name = experiment.data.train_split if training else experiment.data.eval_split
    names = manifest.splits[name].shards.names
    return TaskSource(experiment.data.path, names, experiment, training)


@dataclass(frozen=True)
class Task:
    """Reads of one epoch that one task turns into views."""

    epoch: int
    reads: tuple[Read, ...]


def tasks_of(source: TaskSource, reads: Iterable[tuple[int, Read]]) -> Iterator[Task]:
    """Group reads into tasks of at least one read and, beyond that, at most TASK_BYTES of views.

    Args:
        source: Its options determine the size of a row's views.
        reads: (epoch, read), in order.
    """
    options = source.experiment
    per_row = 3 * options.views.image_size**2 * (1 + options.num_contrastive * source.training)
    for epoch, epoch_reads in itertools.groupby(reads, key=operator.itemgetter(0)):
        group: list[Read] = []
        for _, read in epoch_reads:
            if group and sum(len(r.rows) for r in [*group, read]) * per_row > TASK_BYTES:
                yield Task(epoch, tuple(group))
                group = []
            group.append(read)
        yield Task(epoch, tuple(group))


def split_block(task: Task, block: Batch) -> Iterator[Batch]:
    """The part of a task's block that belongs to each of its reads."""
    begin = 0
    for read in task.reads:
        end = begin + len(read.rows)
        yield {name: column[begin:end] for name, column in block.items()}
        begin = end


def joined(parts: Sequence[Mapping[str, np.ndarray]], epoch: int = 0) -> Batch:  # noqa: ARG001
    """Concatenate the parts of a batch, in this process's memory."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
