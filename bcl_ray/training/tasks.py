"""Data tasks: they read, decode and crop images; this module needs neither Ray nor torch.

A task makes a few blocks of views. While it decodes one, threads read the row groups of the next
from the object store.

Axes: N images of a block, V contrastive views, H = W = views.image_size.
"""

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bcl_ray.data.layout import Read
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views import host
from bcl_ray.experiment.options import Experiment
from bcl_ray.runs.budget import BLOCK_BYTES
from bcl_ray.storage import files

Batch = dict[str, np.ndarray]
Portion = tuple[Read, ...]
"""Reads whose views make one block."""

TASK_BLOCKS = 4  # blocks of a task, at most: reading takes time without overlap in the first alone
EPOCH_TASKS = 16  # of a worker, at least, as far as it has so many blocks: they run side by side
EVALUATION_ROWS = 256  # of a batch, whatever the row groups of the shards are
READ_BYTES = 64 * 2**20  # of row groups for a block, at most: a first batch needs a row of each
READERS = 4  # threads of a task that read row groups


@dataclass(frozen=True)
class Task:
    """Reads of one epoch that one task turns into blocks of views."""

    epoch: int
    portions: tuple[Portion, ...]


@dataclass(frozen=True)
class TaskSource:
    """The shards of one split, and the views to make of their images; every task gets it."""

    path: str
    """Folder or URI of the shards."""
    files: Sequence[str]
    """Names of the shards' files, in the manifest's order."""
    row_group_bytes: int
    """Bytes of a row group, about."""
    experiment: Experiment
    """Options of the views, and the seed."""
    training: bool
    """Whether to make random views; otherwise each image has the one view of evaluation."""

    def load(self, task: Task) -> Iterator[Batch]:
        """Read, decode and crop rows.

        Yields:
            The block of each portion: `views` uint8 (N, 1 + V, H, W, 3), or (N, 1, H, W, 3) in
            evaluation; `labels` and `ids` int64 (N,).
        """
        with ThreadPoolExecutor(READERS) as readers:
            upcoming = self._start_reading(readers, task.portions[0])
            for number, portion in enumerate(task.portions, 1):
                tables = [
                    upcoming[read.shard, read.row_group].result().take(read.rows)
                    for read in portion
                ]
                if number < len(task.portions):
                    upcoming = self._start_reading(readers, task.portions[number])
                yield self._views(tables, task.epoch)

    def _start_reading(
        self, readers: ThreadPoolExecutor, portion: Portion
    ) -> dict[tuple[int, int], Future[Any]]:
        """Start to read the row groups of a portion, each once: two reads may share one."""
        row_groups = {(read.shard, read.row_group) for read in portion}
        return {
            (shard, row_group): readers.submit(
                read_row_group, files.join(self.path, self.files[shard]), row_group
            )
            for shard, row_group in sorted(row_groups)
        }

    def _views(self, tables: Sequence[Any], epoch: int) -> Batch:
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
    data = experiment.data
    name = data.train_split if training else data.monitored_split
    split = manifest.splits[name]
    row_bytes = int(split.shards.bytes.sum()) // split.rows
    return TaskSource(
        experiment.data.path,
        split.shards.names,
        split.row_group_rows * row_bytes,
        experiment,
        training,
    )


def tasks_of(
    source: TaskSource, reads: Iterable[tuple[int, Read]], rows_per_epoch: int
) -> Iterator[Task]:
    """Group reads into tasks, each of one epoch.

    Args:
        source: Its options determine the size of a row's views.
        reads: (epoch, read), in order.
        rows_per_epoch: Rows of all reads of an epoch, about; tasks are smaller if they are few.
    """
    options = source.experiment
    per_row = 3 * options.views.image_size**2 * (1 + options.num_contrastive * source.training)
    blocks = rows_per_epoch * per_row // BLOCK_BYTES
    task_blocks = max(1, min(TASK_BLOCKS, blocks // EPOCH_TASKS))
    for epoch, epoch_reads in itertools.groupby(reads, key=operator.itemgetter(0)):
        portions = _portions(
            (read for _, read in epoch_reads),
            BLOCK_BYTES // per_row,
            READ_BYTES // max(1, source.row_group_bytes),
        )
        while group := tuple(itertools.islice(portions, task_blocks)):
            yield Task(epoch, group)


def _portions(reads: Iterable[Read], most_rows: int, most_reads: int) -> Iterator[Portion]:
    """Group reads so that each group has one read or, with more, at most so many rows and reads."""
    portion: list[Read] = []
    rows = 0
    for read in reads:
        if portion and (rows + len(read.rows) > most_rows or len(portion) >= most_reads):
            yield tuple(portion)
            portion, rows = [], 0
        portion.append(read)
        rows += len(read.rows)
    if portion:
        yield tuple(portion)


def packed(batch: Batch) -> pa.Table:
    """A batch as a table of one row, each array a value of bytes.

    Processes share it through an object store without a copy. One row, so that Ray Data never cuts
    or joins blocks.
    """
    columns = {}
    for name, array in batch.items():
        data = np.ascontiguousarray(array)
        offsets = pa.py_buffer(np.array([0, data.nbytes], dtype=np.int64))
        columns[name] = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)]
        )
        columns[f"{name}.shape"] = pa.array([list(data.shape)], pa.list_(pa.int64()))
        columns[f"{name}.dtype"] = pa.array([data.dtype.str])
    return pa.table(columns)


def unpacked(table: pa.Table) -> Batch:
    """The batch of a table by `packed`; its arrays are read-only memory of the table."""
    names = [name for name in table.column_names if "." not in name]
    return {
        name: np.frombuffer(_value(table[name]), dtype=table[f"{name}.dtype"][0].as_py()).reshape(
            table[f"{name}.shape"][0].as_py()
        )
        for name in names
    }


def _value(column: pa.ChunkedArray) -> pa.Buffer:
    """The bytes of a column's only value; reading it as a scalar would copy them."""
    (chunk,) = column.chunks
    _, offsets, data = chunk.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2].tolist()
    return data[begin:end] if data is not None else pa.py_buffer(b"")


def split_block(portion: Portion, block: Batch) -> Iterator[Batch]:
    """The part of a block that belongs to each read of its portion."""
    begin = 0
    for read in portion:
        end = begin + len(read.rows)
        yield {name: column[begin:end] for name, column in block.items()}
        begin = end


def rebatched(blocks: Iterable[Mapping[str, np.ndarray]], rows: int) -> Iterator[list[Batch]]:
    """The rows of blocks, in order, as parts of batches of one size; the last may be smaller."""
    parts: list[Batch] = []
    missing = rows
    for block in blocks:
        begin, size = 0, len(block["ids"])
        while begin < size:
            end = min(size, begin + missing)
            parts.append({name: column[begin:end] for name, column in block.items()})
            missing -= end - begin
            begin = end
            if missing == 0:
                yield parts
                parts, missing = [], rows
    if parts:
        yield parts


def joined(parts: Sequence[Mapping[str, np.ndarray]], epoch: int = 0) -> Batch:  # noqa: ARG001
    """Concatenate the parts of a batch, in this process's memory."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
