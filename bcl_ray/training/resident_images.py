"""Images of a split, decoded and copied to a device, where a run keeps them.

Only images of one size can be cropped on a device, see `bcl_ray.data.views.resident`.

Axes: N images read at once, R images of the split, S = views.image_size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.layout import Read, evaluation_reads, split_layout
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views import host
from bcl_ray.data.views.resident import is_exact
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

THREADS = 4  # that read and decode
COMPARED_IMAGES = 16  # cropped by OpenCV and on the device, to compare both

Watch = Callable[[Iterable[Any]], Iterator[Any]]
Decoder = Callable[[Sequence[bytes], NDArray[np.int64], Experiment], NDArray[np.uint8]]


class UnsupportedError(UserError):
    """The images cannot be kept on a device, or not with the chosen views."""


class ResidentImages(NamedTuple):
    """Decoded images in the order of their split."""

    pixels: Tensor
    """(R, S, S, 3) uint8, RGB, on the device."""
    labels: NDArray[np.int64]
    """(R,), on the host."""
    ids: NDArray[np.int64]
    """(R,), on the host: the keys of every random choice."""


def load_images(
    experiment: Experiment,
    manifest: Manifest,
    split: str,
    reads: Sequence[Read],
    decode: Decoder,
    *,
    device: torch.device,
    watched: Watch = iter,
) -> ResidentImages:
    """Read and decode images of a split, and copy them to a device part by part.

    Args:
        reads: The rows to read, in order.
        decode: `whole_images` or `evaluation_images`.
        experiment, manifest, split, device: The run's options, the shards in data.path, the name
            of the split, and the device to copy to.
        watched: Wraps an iterable that takes long, as `Watchdog.watched` does.

    Raises:
        UnsupportedError: As `decode` does.
        OSError: A shard cannot be read.
    """
    rows, size = sum(len(read.rows) for read in reads), experiment.views.image_size
    pixels = torch.empty(rows, size, size, 3, dtype=torch.uint8, device=device)
    labels, ids = (np.empty(rows, np.int64) for _ in range(2))
    begin = 0
    for part in watched(_decoded_parts(experiment, manifest, split, reads, decode)):
        part_pixels, part_labels, part_ids = part
        rows_of_part = slice(begin, begin + len(part_ids))
        pixels[rows_of_part].copy_(torch.from_numpy(part_pixels))
        labels[rows_of_part], ids[rows_of_part] = part_labels, part_ids
        begin = rows_of_part.stop
    return ResidentImages(pixels, labels, ids)


def _decoded_parts(
    experiment: Experiment, manifest: Manifest, split: str, reads: Sequence[Read], decode: Decoder
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]:
    """Pixels (N, S, S, 3), labels and ids (N,) of each read, in order, by a few threads."""
    shards = manifest.splits[split].shards.names

    def load(read: Read) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        uri = files.join(experiment.data.path, shards[read.shard])
        table = read_row_group(uri, read.row_group).take(read.rows)
        ids = table["id"].to_numpy()
        pixels = decode(table["image"].to_pylist(), ids, experiment)
        return pixels, table["label"].to_numpy().astype(np.int64), ids

    with host.one_thread(), ThreadPoolExecutor(THREADS, "read-images") as threads:
        yield from threads.map(load, reads)


def whole_images(
    images: Sequence[bytes], ids: NDArray[np.int64], experiment: Experiment
) -> NDArray[np.uint8]:
    """Decode training images, which are cropped later, on the device; within `host.one_thread`.

    Args:
        images: Encoded images, N of them.
        ids: Their ids, (N,).
        experiment: The run's options.

    Returns:
        (N, S, S, 3) uint8. Images of another size are resized, if no view has resized crops.

    Raises:
        UnsupportedError: An image has another size, and a view has resized crops.
        ValueError: An image does not decode; the text names its id.
    """
    size, resized_views = experiment.views.image_size, _views_with_resized_crops(experiment)
    result = np.empty((len(images), size, size, 3), np.uint8)
    for n, image in enumerate(images):
        pixels = host.decode_image(image, ids[n])
        height, width = pixels.shape[:2]
        if (height, width) != (size, size):
            if resized_views:
                raise UnsupportedError(
                    f"image with id {ids[n]} has {height} x {width} pixels, and views."
                    f"{resized_views[0]}.crop 'resized' is exact on a device only for images of "
                    f"views.image_size ({size} x {size}): set data.residency=stream"
                )
            pixels = host.resize(pixels, size, size, experiment.views.interpolation)
        result[n] = pixels
    return result


def evaluation_images(
    images: Sequence[bytes], ids: NDArray[np.int64], experiment: Experiment
) -> NDArray[np.uint8]:
    """Decode and crop images as they are evaluated; arguments and result as of `whole_images`."""
    return host.eval_views(images, experiment.views, ids=ids)[:, 0]


def _views_with_resized_crops(experiment: Experiment) -> list[str]:
    views = {"classification": experiment.views.classification}
    if experiment.num_contrastive:
        views["contrastive"] = experiment.views.contrastive
    return [name for name, view in views.items() if view.crop == "resized"]


def check_crops(images: ResidentImages, experiment: Experiment) -> None:
    """Make sure that this machine's OpenCV crops as the device does, if crops are resized.

    Raises:
        UnsupportedError: It does not.
    """
    if not _views_with_resized_crops(experiment):
        return
    if experiment.views.interpolation != "bilinear":
        raise UnsupportedError(
            f"views.interpolation '{experiment.views.interpolation}' has no equal on a device for "
            "crops that are resized: set it to bilinear, or data.residency=stream"
        )
    if not is_exact(images.pixels[:COMPARED_IMAGES].cpu().numpy()):
        raise UnsupportedError(
            "OpenCV on this machine resizes differently from the crops on a device, so that views "
            "would differ from those of the stream: install the version of opencv-python-headless "
            "that bcl-ray requires, or set data.residency=stream"
        )


def check_residency(experiment: Experiment, manifest: Manifest) -> None:
    """If data.residency is 'device', check the first image of the training split.

    Raises:
        UnsupportedError: It cannot be cropped on a device; the text names the image and the rule.
        OSError: Its shard cannot be read.
    """
    if not experiment.is_resident:
        return
    read = next(iter(evaluation_reads(split_layout(experiment, manifest, "training"))))
    first_row = read._replace(rows=read.rows[:1])
    split = experiment.data.train_split
    list(_decoded_parts(experiment, manifest, split, [first_row], whole_images))
