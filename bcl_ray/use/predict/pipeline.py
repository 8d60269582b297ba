"""The pipeline of a prediction: tasks read images, actors label them, the driver writes parts.

A part is one file of the result, with the labels of `part_size` images, which is a multiple of
`batch_size`. A batch is read and decoded by one task, labelled as a whole, and returned to the
driver in order. The same images therefore give the same tables on a cluster of any size; another
batch size or another kind of processor changes only the rounding. Memory holds the rows of two
parts in the driver, and the batches in progress (`labelling`), however many images there are.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from ray.exceptions import RayError

from bcl_ray.ray_runtime.connection import one_line
from bcl_ray.runs.events import Follow
from bcl_ray.use.models import OpenModel
from bcl_ray.use.predict.inputs import InputImages, read_batch
from bcl_ray.use.predict.labelling import Labelling
from bcl_ray.use.predict.listing import Listed, Listing
from bcl_ray.use.predict.outputs import Output
from bcl_ray.use.predict.pool import ActorPool, PredictionError
from bcl_ray.use.predict.tables import Classes, Columns, table_of

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
    listing: Listing
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
        request, views = self.output.request, self.model.experiment.views
        options = request.options
        labelling = Labelling(
            self.listing,
            first=self.finished_parts * options.part_size,
            batch_size=options.batch_size,
            read=functools.partial(read_batch, self.images, views),
            model=(request.model, request.sha256, options.top, options.embeddings),
            pool=self.pool,
        )
        with labelling:
            yield from labelling.blocks()

    def _write_parts(self, blocks: Blocks) -> None:
        """Collect blocks into parts, and write each in a thread while the next one is labelled."""
        size, number = self.output.request.options.part_size, self.finished_parts
        rows, progress = number * size, _Progress(self.follow)
        classes = Classes(self.model.class_names, self.model.state.class_counts)
        part: list[Columns] = []
        with ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for block in blocks:
                part.append(block)
                rows += len(block["error"])
                listed = self.listing.now()
                # Every part ends where a block ends, as its size is a multiple of the batch size.
                if rows == (number + 1) * size or (listed.complete and rows == listed.images):
                    if written is not None:
                        written.result()
                    written = writer.submit(self._write_part, number, part, classes)
                    number, part = number + 1, []
                progress.add(block, rows, listed)
            if written is not None:
                written.result()
        if part or rows != self.listing.now().images:
            raise RuntimeError(
                f"{rows:,} images came back of {self.listing.now().images:,}: this is a fault of "
                "the pipeline, not of the images"
            )

    def _write_part(self, number: int, blocks: list[Columns], classes: Classes) -> None:
        columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        self.output.write(number, table_of(columns, classes))


class _Progress:
    """Reports progress, not more often than every PROGRESS_INTERVAL.

    Args:
        follow: Called with events `images`.
    """

    def __init__(self, follow: Follow) -> None:
        self._follow, self._unreadable, self._last_event = follow, 0, 0.0

    def add(self, block: Columns, rows: int, listed: Listed) -> None:
        """Count a block; `rows` is the number of images labelled so far, this block's included."""
        self._unreadable += int((block["error"] != "").sum())
        total = listed.images if listed.complete else None
        if time.monotonic() - self._last_event > PROGRESS_INTERVAL or rows == total:
            self._last_event = time.monotonic()
            progress = {"kind": "images", "doing": "labelling", "done": rows, "total": total}
            self._follow({**progress, "unreadable": self._unreadable})


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
