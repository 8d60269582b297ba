"""Batches of small data sets, whose images are kept on a device: without a stream, without Ray.

Plan, random choices and views are the stream's, bit for bit. A read of the plan becomes positions
of images, where the stream would run a data task.

Axes: N images of a batch, V contrastive views, R images of the split, S = views.image_size.
"""

import functools
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
import torch

from bcl_ray.data.batches import planned_batches
from bcl_ray.data.layout import Read, evaluation_reads, split_layout
from bcl_ray.data.plan import Block, epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import DeviceBatch, Sender
from bcl_ray.experiment.options import Experiment
from bcl_ray.training.resident_images import (
    ResidentImages,
    Watch,
    check_crops,
    evaluation_images,
    load_images,
    whole_images,
)
from bcl_ray.training.tasks import EVALUATION_ROWS


class ResidentFeed:
    """A worker's batches from images on its device.

    Each worker's device holds the whole training split, and the worker's part of the evaluation
    split.

    Args:
        experiment: The run's options.
        manifest: Manifest of the shards in data.path.
        device: The worker's device.
        rank, world_size: The worker's number, and the number of workers.
        watched: Wraps an iterable that takes long, as `Watchdog.watched` does.

    Raises:
        UnsupportedError: The images cannot be kept there, or this machine's OpenCV crops
            differently.
        OSError: A shard cannot be read.
    """

    kind = "device"

    def __init__(
        self,
        experiment: Experiment,
        manifest: Manifest,
        device: torch.device,
        *,
        rank: int = 0,
        world_size: int = 1,
        watched: Watch = iter,
    ) -> None:
        self._experiment, self._rank, self._world_size = experiment, rank, world_size
        self._plans = functools.partial(epoch_plan, experiment, manifest)
        load = functools.partial(load_images, experiment, manifest, device=device, watched=watched)
        reads = list(evaluation_reads(split_layout(experiment, manifest, "training")))
        self._images = load(experiment.data.train_split, reads, whole_images)
        check_crops(self._images, experiment)
        layout = split_layout(experiment, manifest, "evaluation")
        reads = list(evaluation_reads(layout, rank, world_size))
        images = load(experiment.data.monitored_split, reads, evaluation_images)
        self._evaluation = evaluation_batches(images)

    def training(
        self,
        sender: Sender,
        first_step: int,
        *,
        evaluate_first: bool = False,  # noqa: ARG002  it makes no difference here
    ) -> Generator[tuple[int, Iterator[DeviceBatch]], None, None]:
        """Each remaining epoch's number, with this worker's batches of it."""
        positions = self._plans(0).layout.positions
        num_views = 1 + self._experiment.num_contrastive
        images = self._images

        def blocks(reads: Iterator[tuple[int, Read]]) -> Generator[Block, None, None]:
            for _, read in reads:
                yield {"rows": positions(read)}

        def batch(parts: Sequence[Block], epoch: int) -> DeviceBatch:
            rows = np.concatenate([part["rows"] for part in parts])
            arrays = {"labels": images.labels[rows], "ids": images.ids[rows]}
            return sender.send_resident(
                images.pixels, rows, arrays, num_views=num_views, epoch=epoch
            )

        return planned_batches(
            self._experiment,
            self._plans,
            blocks,
            batch,
            rank=self._rank,
            world_size=self._world_size,
            first_step=first_step,
        )

    def evaluation(self) -> Iterable[DeviceBatch]:
        """Batches of this worker's part of the evaluation split."""
        return self._evaluation


def evaluation_batches(images: ResidentImages) -> list[DeviceBatch]:
    """Batches of all images for `evaluation.evaluate`, to be used at every evaluation.

    Args:
        images: Images as `evaluation_images` decodes them; none with fewer row groups than workers.
    """
    device = images.pixels.device
    labels, ids = (torch.from_numpy(array).to(device) for array in (images.labels, images.ids))
    parts = (slice(row, row + EVALUATION_ROWS) for row in range(0, len(ids), EVALUATION_ROWS))
    return [
        DeviceBatch(
            {"views": images.pixels[part, None], "labels": labels[part], "ids": ids[part]},
            {"labels": images.labels[part], "ids": images.ids[part]},
        )
        for part in parts
    ]
