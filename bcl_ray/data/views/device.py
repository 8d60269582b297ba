"""The device half of the views: colour and normalisation of a whole batch, where the views are.

Axes: N images, V contrastive views, M = (1 + V) * N, S stages, H = W = views.image_size.

Order, as in published recipes: jitter, grayscale, blur, policy, cutout, normalise. Warps are
bilinear and filled with views.mean. Cutout is black, zero before it is normalised, as in the
published code for long-tailed CIFAR. Between operations images are 8-bit, as they are in Pillow.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views import policy
from bcl_ray.data.views.operations import OPERATIONS, Constants, Context, constants
from bcl_ray.data.views.schedule import Pass, scheduled
from bcl_ray.experiment.options import ViewsConfig
from bcl_ray.machine.errors import UserError

# Values per pass on a CPU: an operation's temporaries then stay in its cache (measured 2026-11).
_CPU_CHUNK = 2**19


class Choices(NamedTuple):
    """What was drawn for a batch of views: the passes, and the arrays that they need there."""

    passes: tuple[Pass, ...]
    arrays: Mapping[str, NDArray[Any]]
    """Those of `schedule.scheduled`, and `cutout` bool, (views with cutout * N, 2, S)."""


def choices(
    ids: NDArray[np.int64], config: ViewsConfig, *, num_views: int, seed: int, epoch: int
) -> Choices:
    """Draw for the images with these ids, (N,), keyed by (seed, epoch, id, view); on the host."""
    plan = policy.planned(ids, config, num_views=num_views, seed=seed, epoch=epoch)
    passes, arrays = scheduled(plan.kinds, plan.amounts, config.image_size)
    options = {"seed": seed, "epoch": epoch}
    cut = [policy.cutout(ids, config, view, **options) for view in _cut_views(config, num_views)]
    if cut:
        arrays["cutout"] = np.concatenate(cut)
    return Choices(passes, arrays)


def _cut_views(config: ViewsConfig, num_views: int) -> range:
    """Views that a square is cut out of: they lie side by side."""
    first = 0 if config.classification.cutout else 1
    return range(first, num_views if config.contrastive.cutout else min(1, num_views))


def device_views(
    views: Tensor, ids: NDArray[np.int64], config: ViewsConfig, *, seed: int, epoch: int
) -> Tensor:
    """`choices` and `transformed` at once, where nothing runs ahead.

    Raises:
        ValueError: views or ids of another shape.
    """
    _checked(views, config)
    if ids.shape != views.shape[:1]:
        raise UserError(f"ids must have shape ({len(views)},), one per image, got {ids.shape}")
    drawn = choices(ids, config, num_views=views.shape[1], seed=seed, epoch=epoch)
    arrays = {name: torch.from_numpy(a).to(views.device) for name, a in drawn.arrays.items()}
    return transformed(views, drawn.passes, arrays, config)


def transformed(
    views: Tensor, passes: Sequence[Pass], arrays: Mapping[str, Tensor], config: ViewsConfig
) -> Tensor:
    """Colour, cut out and normalise: (1 + V, N, 3, H, W) float32; flattened, channels_last.

    Nothing is sent or read back, so that a GPU is never waited for.

    Args:
        views: what `host.train_views` made, (N, 1 + V, H, W, 3) uint8, on the device to work on.
        passes: of `choices`.
        arrays: likewise, on the device.

    Raises:
        ValueError: views of another shape.
    """
    _checked(views, config)
    with _one_thread(views.device):
        images = _planes(views)
        _apply(images.flatten(0, 1), passes, arrays, _constants(config, images.device))
        if cut := _cut_views(config, len(images)):
            _cut_out(images[cut.start : cut.stop].flatten(0, 1), arrays["cutout"])
        return _normalise(images, config)


def normalized(views: Tensor, config: ViewsConfig) -> Tensor:
    """Evaluation: only normalise (N, 1, H, W, 3) uint8 to (1, N, 3, H, W) float32, channels_last.

    Raises:
        ValueError: views of another shape.
    """
    _checked(views, config)
    with _one_thread(views.device):
        return _normalise(_planes(views), config)


def _checked(views: Tensor, config: ViewsConfig) -> None:
    size = config.image_size
    if views.dtype != torch.uint8 or views.ndim != 5 or views.shape[2:] != (size, size, 3):
        raise UserError(
            f"views must be uint8 of shape (N, 1 + V, {size}, {size}, 3), with views.image_size = "
            f"{size}, got {views.dtype} of shape {tuple(views.shape)}"
        )


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Keep short operations from waiting for a second thread, on a CPU.

    Many of them take microseconds. Where data tasks keep every core busy, as they should, two
    threads took 3 to 30 times as long as one (measured 2026-11); one takes a hundredth of the
    training step.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _planes(views: Tensor) -> Tensor:
    """(N, V, H, W, 3) to (V, N, 3, H, W): operations are faster on whole planes."""
    return views.permute(1, 0, 4, 2, 3).contiguous()


def _apply(
    images: Tensor, passes: Sequence[Pass], arrays: Mapping[str, Tensor], constants: Constants
) -> None:
    """Carry out the passes in place on images (M, 3, H, W)."""
    rows = _rows(images)
    for one in passes:
        positions, coefficients = arrays[f"{one.family}_images"], arrays[one.family]
        for part in _chunks(images, one.rows.start, one.rows.stop):
            index = positions[part]
            before = rows.index_select(0, index).view(torch.uint8).view(-1, *images.shape[1:])
            context = Context(one.within(part), constants)
            result = OPERATIONS[one.family](before, coefficients[part], context)
            rows.index_copy_(0, index, result.flatten(1).view(rows.dtype))


def _rows(images: Tensor) -> Tensor:
    """The same memory, one row of words per image: a CPU copies bytes no faster than words."""
    width = images[0].numel()
    words = (torch.int64, torch.int32, torch.int16, torch.uint8)
    return images.flatten(1).view(next(word for word in words if width % word.itemsize == 0))


def _chunks(images: Tensor, start: int, end: int) -> Iterator[slice]:
    """Cut start to end into pieces that a CPU's cache holds; a GPU takes all of it at once."""
    step = end - start
    if images.device.type == "cpu":
        step = max(1, _CPU_CHUNK // images[0].numel())
    for first in range(start, end, step):
        yield slice(first, min(first + step, end))


def _cut_out(images: Tensor, within: Tensor) -> None:
    """Blacken the pixels whose row and column are within, (M, 2, S) bool."""
    images.masked_fill_((within[:, 0, :, None] & within[:, 1, None, :])[:, None], 0)


def _normalise(images: Tensor, config: ViewsConfig) -> Tensor:
    """(V, N, 3, H, W) uint8 to float32; every (N, 3, H, W) and all of them are channels_last."""
    scale, shift = _constants(config, images.device)[2:4]
    flat = images.flatten(0, 1)
    values = torch.empty_like(flat, dtype=torch.float32, memory_format=torch.channels_last)
    for part in _chunks(flat, 0, len(flat)):
        torch.sub(flat[part] * scale, shift, out=values[part])
    return values.view(images.shape)


def _constants(config: ViewsConfig, device: torch.device) -> Constants:
    return constants(config.mean, config.std, config.image_size, device)
