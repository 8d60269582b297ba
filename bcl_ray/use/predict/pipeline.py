"""The pipeline of a prediction: Ray Data reads images, actors label them, the driver writes parts.

A part is one file of the result, with the labels of `part_size` images, which is a multiple of
`batch_size`. A batch is read and decoded by one task, labelled as a whole, and returned to the
driver in order. The same images therefore give the same tables on a cluster of any size; another
batch size or another kind of processor changes only the rounding. Memory holds the rows of one part
in the driver, and the batches in progress in Ray Data.
"""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, ExecutionResources
from ray.exceptions import RayError

from bcl_ray.ray_runtime.connection import one_line
from bcl_ray.training.supplier import PausingCallback
from bcl_ray.use.models import OpenModel
from bcl_ray.use.predict.inputs import InputImages, read_batch
from bcl_ray.use.predict.labeller import Labeller
from bcl_ray.use.predict.outputs import Output
from bcl_ray.use.predict.pool import ActorPool, PredictionError
from bcl_ray.use.predict.tables import Classes, Columns, table_of

Follow = Callable[[dict[str, Any]], None]
Blocks = Generator[Columns, None, None]  # labelled batches, in order

PROGRESS_INTERVAL = 0.5  # seconds between two events of progress
# Seconds without a result after which the user is told. Ray's processes and the network take about
# 20 to start.
LATE_SECONDS = 120.0


@dataclass(frozen=True)
class Pipeline:
    """Labels the images that have no part yet, and writes their parts."""

    model: OpenModel
    images: InputImages
    output: Output
    pool: ActorPool
    finished_parts: int  # written by an earlier job
    follow: Follow  # called with events `images` and `note`

    def run(self, on_first_block: Callable[[], None]) -> None:
        """Label and write all remaining parts.

        Args:
            on_first_block: Called when the first labelled batch comes back.

        Raises:
            PredictionError: Ray failed; the parts that are written stay.
        """
        blocks = with_late_notice(self._labelled_blocks(), self.follow, on_first_block)
        try:
            with contextlib.closing(blocks):
                self._write_parts(blocks)
        except RayError as error:
            raise PredictionError(
                f"{one_line(error)}\nwhat is done stays: go on with --resume"
            ) from error

    def _labelled_blocks(self) -> Blocks:
        """One block per batch of the remaining images, in order."""
        request = self.output.request
        options = request.options
        first, size = self.finished_parts * options.part_size, options.batch_size
        batches = math.ceil((self.images.total - first) / size)
        views = self.model.experiment.views
        read = functools.partial(read_batch, self.images, views, first, size)
        actor = self.pool.actor
        dataset = (
            ray.data.range(batches, override_num_blocks=batches)
            .map_batches(read, batch_size=1, num_cpus=self.pool.reader["CPU"])
            .map_batches(
                Labeller,
                fn_constructor_args=(request.model, request.sha256),
                fn_constructor_kwargs={"top": options.top, "embeddings": options.embeddings},
                batch_size=size,  # each block is one batch; Ray requires a size with GPUs
                compute=ActorPoolStrategy(min_size=1, max_size=self.pool.actors),
                num_cpus=actor["CPU"],
                num_gpus=actor.get("GPU"),
            )
        )
        context = dataset.context
        context.enable_progress_bars = False
        context.custom_execution_callback_classes.append(PausingCallback)
        context.target_max_block_size = None  # Ray would split blocks, which are whole batches
        context.execution_options.preserve_order = True
        # Without a limit, Ray Data requests more nodes while it is busy. Without GPUs, an actor and
        # its reader take one CPU together.
        limit = {"gpu": self.pool.actors} if "GPU" in actor else {"cpu": self.pool.actors}
        context.execution_options.resource_limits = ExecutionResources.for_limits(**limit)
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy")

    def _write_parts(self, blocks: Blocks) -> None:
        """Collect blocks into parts, and write them."""
        classes = Classes(self.model.class_names, self.model.state.class_counts)
        size, total = self.output.request.options.part_size, self.images.total
        part_number, unreadable, last_event = self.finished_parts, 0, 0.0
        rows = part_number * size  # of all parts so far
        part: list[Columns] = []
        for block in blocks:
            part.append(block)
            rows += len(block["fault"])
            unreadable += int((block["fault"] != "").sum())
            # Every part ends where a block ends, because its size is a multiple of the batch size.
            if rows == min((part_number + 1) * size, total):
                self.output.write(part_number, table_of(_concatenated(part), classes))
                part_number, part = part_number + 1, []
            if time.monotonic() - last_event > PROGRESS_INTERVAL or rows == total:
                last_event = time.monotonic()
                progress = {"kind": "images", "doing": "labelling", "done": rows, "total": total}
                self.follow({**progress, "unreadable": unreadable})
        if rows != total:
            raise RuntimeError(
                f"{rows:,} images came back of {total:,}: this is a fault of the stream, not of "
                "the images"
            )


def with_late_notice(blocks: Blocks, follow: Follow, on_first_block: Callable[[], None]) -> Blocks:
    """The same blocks; the user is told if the first one does not come in LATE_SECONDS.

    Args:
        blocks: Labelled batches.
        follow: Called with an event `note`.
        on_first_block: Called when the first block comes.
    """
    text = (
        f"no image came back within {LATE_SECONDS:g} s: others may use the cluster's CPUs or GPUs"
    )
    timer = threading.Timer(LATE_SECONDS, follow, [{"kind": "note", "text": text}])
    timer.daemon = True
    timer.start()
    try:
        with contextlib.closing(blocks):
            for number, block in enumerate(blocks):
                if number == 0:
                    timer.cancel()
                    on_first_block()
                yield block
    finally:
        timer.cancel()


def _concatenated(blocks: list[Columns]) -> Columns:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
