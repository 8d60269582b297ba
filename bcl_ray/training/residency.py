"""Small data sets that live decoded on a device: batches without a stream, and without Ray.

The plan, the random choices and the views are the stream's, bit for bit: a read of the plan
becomes positions of images instead of a data task. Only images of one size can be cropped so;
see `views.resident`.

Axes: N images of a batch, R of the split, S = views.image_size.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.batches import Block, Plans, planned_batches
from bcl_ray.data.layout import Read, evaluation_reads, split_layout
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views import host
from bcl_ray.data.views.resident import is_exact
from bcl_ray.data.views.transfer import Sender, Sent
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

THREADS = 4  # that read and decode
COMPARED = 16  # images that OpenCV is tried on

Over = Callable[[Iterable[Any]], Iterator[Any]]


class UnsupportedError(UserError):
    """The images cannot live on a device with the views that were asked for."""


class ResidentImages(NamedTuple):
    """Decoded images, in the order of their split."""

    pixels: Tensor
    """(R, S, S, 3) uint8, RGB, on the device."""
    labels: NDArray[np.int64]
    """(R,), on the host."""
    ids: NDArray[np.int64]
    """(R,), on the host: they key every random choice."""


class ResidentPart(NamedTuple):
    """Some images on the host: pixels (N, S, S, 3), labels and ids (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


def training_batches(
    experiment: Experiment,
    plans: Plans,
    images: ResidentImages,
    sender: Sender,
    *,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
) -> Generator[tuple[int, Iterator[Sent]], None, None]:
    """Each epoch that is left, with the worker's batches of it, as `loop.train_epoch` takes them.

    Args:
        experiment: what to train.
        plans: of its epochs.
        images: the whole training split, in the order of the plan's layout.
        sender: to the device that has the images.
        rank: this worker's number.
        world_size: number of workers.
        first_step: steps of the whole run that are done.
    """
    rows_of = plans(0).layout.positions
    num_views = 1 + experiment.num_contrastive

    def blocks(reads: Iterator[tuple[int, Read]]) -> Generator[Block, None, None]:
        for _, read in reads:
            yield {"rows": rows_of(read)}

    def batch(parts: Sequence[Block], epoch: int) -> Sent:
        rows = np.concatenate([part["rows"] for part in parts])
        host_arrays = {"labels": images.labels[rows], "ids": images.ids[rows]}
        return sender.resident(images.pixels, rows, host_arrays, num_views=num_views, epoch=epoch)

    return planned_batches(
        experiment, plans, blocks, batch, rank=rank, world_size=world_size, first_step=first_step
    )


def evaluation_batches(images: ResidentImages, sizes: Sequence[int]) -> list[Sent]:
    """All images, so many of them at a time, as `inference.evaluate` takes them, every time again.

    Args:
        images: what `host.eval_views` makes of each.
        sizes: images of each batch, R in all.
    """
    if not sizes:  # there may be fewer row groups than workers
        return []
    device = images.pixels.device
    columns = (torch.from_numpy(array).to(device) for array in (images.labels, images.ids))
    on_device = (images.pixels[:, None], *columns)
    on_host = (images.labels, images.ids)
    cuts = np.cumsum(sizes)[:-1].tolist()
    pieces = zip(*(column.tensor_split(cuts) for column in on_device), strict=True)
    arrays = zip(*(np.split(column, cuts) for column in on_host), strict=True)
    names = ("views", "labels", "ids")
    return [
        Sent(dict(zip(names, tensors, strict=True)), dict(zip(names[1:], some, strict=True)))
        for tensors, some in zip(pieces, arrays, strict=True)
    ]


class Resident:
    """A worker's batches from images that its device holds.

    Args:
        experiment: what to train.
        manifest: of the shards in experiment.data.path.
        device: where the images shall live.
        rank, world_size: which worker this is; it holds all of the training split, and its part
            of the evaluation split.
        over: wraps what takes long, such as `Watch.over`; gives the same items.

    Raises:
        UnsupportedError: the images cannot live there, or this machine's OpenCV crops otherwise.
        OSError: a shard cannot be read.
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
        over: Over = iter,
    ) -> None:
        self._experiment, self._part = experiment, {"rank": rank, "world_size": world_size}
        self._plans = functools.partial(epoch_plan, experiment, manifest)
        reads = list(evaluation_reads(split_layout(experiment, manifest, "train_split")))
        parts = _read(experiment, manifest, experiment.data.train_split, reads, whole_images)
        self._images = on_device(over(parts), _rows(reads), device, experiment)
        if _resized(experiment):
            check_crops(self._images)
        rows = split_layout(experiment, manifest, "eval_split")
        reads = list(evaluation_reads(rows, rank, world_size))
        parts = _read(experiment, manifest, experiment.data.eval_split, reads, _evaluated)
        evaluated = on_device(over(parts), _rows(reads), device, experiment)
        self._evaluation = evaluation_batches(evaluated, [len(read.rows) for read in reads])

    def training(
        self, sender: Sender, first_step: int
    ) -> Generator[tuple[int, Iterator[Sent]], None, None]:
        """Each epoch that is left, with this worker's batches of it."""
        return training_batches(
            self._experiment,
            self._plans,
            self._images,
            sender,
            first_step=first_step,
            **self._part,
        )

    def evaluation(self) -> Iterable[Sent]:
        """This worker's part of the evaluation split."""
        return self._evaluation


def on_device(
    parts: Iterable[ResidentPart], rows: int, device: torch.device, experiment: Experiment
) -> ResidentImages:
    """Bring images to a device, part by part."""
    size = experiment.views.image_size
    pixels = torch.empty(rows, size, size, 3, dtype=torch.uint8, device=device)
    labels, ids = (np.empty(rows, np.int64) for _ in range(2))
    begin = 0
    for part in parts:
        some = slice(begin, begin + len(part.ids))
        pixels[some].copy_(torch.from_numpy(part.pixels))
        labels[some], ids[some] = part.labels, part.ids
        begin = some.stop
    return ResidentImages(pixels, labels, ids)


def whole_images(
    images: Sequence[bytes], ids: NDArray[np.int64], experiment: Experiment
) -> NDArray[np.uint8]:
    """Decode the images that training crops on a device, (N, S, S, 3); in `host.one_thread`.

    Raises:
        UnsupportedError: an image that cannot be cropped there.
        ValueError: an image does not decode; its id is named.
    """
    size, resized = experiment.views.image_size, _resized(experiment)
    whole = np.empty((len(images), size, size, 3), np.uint8)
    for n, image in enumerate(images):
        pixels = host.decoded(image, ids[n])
        height, width = pixels.shape[:2]
        if (height, width) != (size, size):
            if resized:
                raise UnsupportedError(
                    f"image with id {ids[n]} has {height} x {width} pixels, and views.{resized[0]}"
                    f".crop 'resized' is exact on a device only for images of views.image_size "
                    f"({size} x {size}): set data.residency=stream"
                )
            pixels = host.resized(pixels, size, size)
        whole[n] = pixels
    return whole


def _resized(experiment: Experiment) -> list[str]:
    """The kinds of views that are made whose crops are resized."""
    kinds = {"classification": experiment.views.classification}
    if experiment.num_contrastive:
        kinds["contrastive"] = experiment.views.contrastive
    return [name for name, kind in kinds.items() if kind.crop == "resized"]


def check_crops(images: ResidentImages) -> None:
    """Make sure that this machine's OpenCV crops as the device does.

    Raises:
        UnsupportedError: it does not.
    """
    if not is_exact(images.pixels[:COMPARED].cpu().numpy()):
        raise UnsupportedError(
            "OpenCV on this machine resizes otherwise than the crops on a device, so that its "
            "views would not be the stream's: install the opencv-python-headless that bcl-ray "
            "names, or set data.residency=stream"
        )


def check_residency(experiment: Experiment, manifest: Manifest) -> None:
    """Refuse data.residency 'device' by the first image of the training split.

    Raises:
        UnsupportedError: naming the image and the rule.
        OSError: its shard cannot be read.
    """
    if experiment.data.residency != "device":
        return
    reads = evaluation_reads(split_layout(experiment, manifest, "train_split"))
    first = next(iter(reads))
    split = experiment.data.train_split
    one = first._replace(rows=first.rows[:1])
    list(_read(experiment, manifest, split, [one], whole_images))


Decoder = Callable[[Sequence[bytes], NDArray[np.int64], Experiment], NDArray[np.uint8]]


def _evaluated(
    images: Sequence[bytes], ids: NDArray[np.int64], experiment: Experiment
) -> NDArray[np.uint8]:
    return host.eval_views(images, experiment.views, ids=ids)[:, 0]


def _read(
    experiment: Experiment, manifest: Manifest, split: str, reads: Sequence[Read], decoder: Decoder
) -> Iterator[ResidentPart]:
    """Decode what was read, in order, by a few threads."""
    shards = [shard.file for shard in manifest.splits[split].shards]

    def load(read: Read) -> ResidentPart:
        uri = files.join(experiment.data.path, shards[read.shard])
        table = read_row_group(uri, read.row_group).take(read.rows)
        ids = table["id"].to_numpy()
        pixels = decoder(table["image"].to_pylist(), ids, experiment)
        return ResidentPart(pixels, table["label"].to_numpy().astype(np.int64), ids)

    with host.one_thread(), ThreadPoolExecutor(THREADS, "read-images") as threads:
        yield from threads.map(load, reads)


def _rows(reads: Iterable[Read]) -> int:
    return sum(len(read.rows) for read in reads)
