"""The device half of the views: colour and normalisation of a whole batch on the training device.

The order is that of published recipes: jitter, grayscale, blur, policy, cutout, normalisation.
Warps are bilinear, and fill with views.mean. Cutout sets pixels to 0 before they are normalised, as
in the published code for long-tailed CIFAR. Between operations images are 8-bit, as in Pillow.

Axes: N images, V contrastive views, M = (1 + V) * N, H = W = S = views.image_size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views import draws
from bcl_ray.data.views.operations import OPERATIONS, Constants, Context, constants
from bcl_ray.data.views.schedule import Pass, build_passes
from bcl_ray.experiment.options import ViewsConfig
from bcl_ray.machine.errors import UserError

# Values that an operation processes at once on a CPU, so that its temporary tensors stay in the
# cache (measured 2026-11).
_CPU_CHUNK = 2**19


class Augmentations(NamedTuple):
    """The operations that were drawn for a batch of views."""

    passes: tuple[Pass, ...]
    arrays: Mapping[str, NDArray[Any]]
    """The arrays of `schedule.build_passes`, and `cutout` bool, (views with cutout * N, 2, S)."""


def draw_augmentations(
    ids: NDArray[np.int64], config: ViewsConfig, *, num_views: int, seed: int, epoch: int
) -> Augmentations:
    """Draw the operations for the images with these ids, (N,), on the host.

    Every random number is keyed by (seed, epoch, id, view).
    """
    plan = draws.draw_operations(ids, config, num_views=num_views, seed=seed, epoch=epoch)
    passes, arrays = build_passes(plan.kinds, plan.amounts, config.image_size)
    masks = [
        draws.cutout_masks(ids, config, view, seed=seed, epoch=epoch)
        for view in _cutout_views(config, num_views)
    ]
    if masks:
        arrays["cutout"] = np.concatenate(masks)
    return Augmentations(passes, arrays)


def _cutout_views(config: ViewsConfig, num_views: int) -> range:
    """The views with cutout, which are always consecutive."""
    first = 0 if config.classification.cutout else 1
    return range(first, num_views if config.contrastive.cutout else min(1, num_views))


def augment(
    views: Tensor, passes: Sequence[Pass], arrays: Mapping[str, Tensor], config: ViewsConfig
) -> Tensor:
    """Apply operations and cutout to views, and normalise them.

    Nothing is copied to or from the device, so the host never waits for a GPU.

    Args:
        views: Views of `host.train_views`, (N, 1 + V, H, W, 3) uint8, on the device.
        passes: Passes of `draw_augmentations`.
        arrays: Arrays of `draw_augmentations`, on the device.

    Returns:
        (1 + V, N, 3, H, W) float32; the images of one view, and of all, are channels_last.

    Raises:
        ValueError: Views have another shape.
    """
    _check_views(views, config)
    with one_thread_on_cpu(views.device):
        images = _to_planes(views)
        _apply(images.flatten(0, 1), passes, arrays, _constants(config, images.device))
        if cutout := _cutout_views(config, len(images)):
            _cut_out(images[cutout.start : cutout.stop].flatten(0, 1), arrays["cutout"])
        return _normalise_planes(images, config)


def normalise(views: Tensor, config: ViewsConfig) -> Tensor:
    """Normalise views for evaluation: (N, 1, H, W, 3) uint8 to (1, N, 3, H, W) float32.

    The result is channels_last.

    Raises:
        ValueError: Views have another shape.
    """
    _check_views(views, config)
    with one_thread_on_cpu(views.device):
        return _normalise_planes(_to_planes(views), config)


def _check_views(views: Tensor, config: ViewsConfig) -> None:
    size = config.image_size
    if views.dtype != torch.uint8 or views.ndim != 5 or views.shape[2:] != (size, size, 3):
        raise UserError(
            f"views must be uint8 of shape (N, 1 + V, {size}, {size}, 3), with views.image_size = "
            f"{size}, got {views.dtype} of shape {tuple(views.shape)}"
        )


@contextmanager
def one_thread_on_cpu(device: torch.device) -> Iterator[None]:
    """Restrict torch to one thread if the device is a CPU.

    Many operations take microseconds. While data tasks use every core, as they should, two threads
    take 3 to 30 times as long as one, which has to wait for the other (measured 2026-11). One
    thread takes a hundredth of the training step.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _to_planes(views: Tensor) -> Tensor:
    """(N, 1 + V, H, W, 3) to (1 + V, N, 3, H, W): operations are faster on planes of a channel."""
    return views.permute(1, 0, 4, 2, 3).contiguous()


def _apply(
    images: Tensor, passes: Sequence[Pass], arrays: Mapping[str, Tensor], constants: Constants
) -> None:
    """Run the passes in place on images, (M, 3, H, W)."""
    rows = _as_rows(images)
    for one in passes:
        positions, coefficients = arrays[f"{one.family}_images"], arrays[one.family]
        for part in _chunks(images, one.rows.start, one.rows.stop):
            index = positions[part]
            before = rows.index_select(0, index).view(torch.uint8).view(-1, *images.shape[1:])
            context = Context(one.within(part), constants)
            result = OPERATIONS[one.family](before, coefficients[part], context)
            rows.index_copy_(0, index, result.flatten(1).view(rows.dtype))


def _as_rows(images: Tensor) -> Tensor:
    """The same memory as rows of words, one per image: a CPU copies a word as fast as a byte."""
    size = images[0].numel()
    words = (torch.int64, torch.int32, torch.int16, torch.uint8)
    return images.flatten(1).view(next(word for word in words if size % word.itemsize == 0))


def _chunks(images: Tensor, start: int, end: int) -> Iterator[slice]:
    """Cut a range of images into pieces that fit in a CPU's cache; for a GPU, into one piece."""
    step = end - start
    if images.device.type == "cpu":
        step = max(1, _CPU_CHUNK // images[0].numel())
    for first in range(start, end, step):
        yield slice(first, min(first + step, end))


def _cut_out(images: Tensor, masks: Tensor) -> None:
    """Set pixels of images, (n, 3, S, S), to 0 whose row and column are in masks, (n, 2, S)."""
    images.masked_fill_((masks[:, 0, :, None] & masks[:, 1, None, :])[:, None], 0)


def _normalise_planes(images: Tensor, config: ViewsConfig) -> Tensor:
    """(1 + V, N, 3, H, W) uint8 to normalised float32; see `augment` for the memory format."""
    scale, shift = _constants(config, images.device)[2:4]
    flat = images.flatten(0, 1)
    values = torch.empty_like(flat, dtype=torch.float32, memory_format=torch.channels_last)
    for part in _chunks(flat, 0, len(flat)):
        torch.sub(flat[part] * scale, shift, out=values[part])
    return values.view(images.shape)


def _constants(config: ViewsConfig, device: torch.device) -> Constants:
    return constants(config.mean, config.std, config.image_size, device)
