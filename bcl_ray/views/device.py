"""The device half of the views: colour and normalisation of a whole batch, where the views are.

Axes: N images, V contrastive views, M = (1 + V) * N, S stages, H = W = views.image_size.

Order, as in published recipes: jitter, grayscale, blur, policy, cutout, normalise. Warps are
bilinear and filled with views.mean. Cutout is black, zero before it is normalised, as in the
published code for long-tailed CIFAR. Between operations images are 8-bit, as they are in Pillow.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.config import ViewConfig, ViewsConfig
from bcl_ray.views import policy
from bcl_ray.views.operations import COLOUR, GEOMETRY, warp

# Values per pass on a CPU: an operation's temporaries then stay in its cache (measured 2026-11).
_CPU_CHUNK = 2**19


class Pass(NamedTuple):
    """One operation on some of a batch's images."""

    operation: str
    rows: slice
    """Where the images' positions and amounts lie in the arrays `indices` and `amounts`."""


class Choices(NamedTuple):
    """What was drawn for a batch of views: the passes, and the arrays that they need there."""

    passes: tuple[Pass, ...]
    arrays: Mapping[str, NDArray[Any]]
    """`indices` int64 and `amounts` float32 of all passes, `cutout_<view>` int64 (N, 2) corners."""


def choices(
    ids: NDArray[np.int64], config: ViewsConfig, *, num_views: int, seed: int, epoch: int
) -> Choices:
    """Draw for the images with these ids, (N,), keyed by (seed, epoch, id, view); on the host."""
    plan = policy.planned(ids, config, num_views=num_views, seed=seed, epoch=epoch)
    order = plan.kinds.argsort(axis=1, kind="stable")
    kinds, amounts = (np.take_along_axis(part, order, axis=1) for part in plan)
    passes = []
    for stage, row in enumerate(kinds):
        found, starts = np.unique(row, return_index=True)
        for kind, start, end in zip(found, starts, [*starts[1:], len(row)], strict=True):
            if kind != policy.NONE:
                begin = stage * len(row)
                passes.append(Pass(policy.NAMES[kind], slice(begin + start, begin + end)))
    arrays = {"indices": order.ravel(), "amounts": amounts.ravel()}
    for view in range(num_views):
        if side := _kind(config, view).cutout:
            options = {"seed": seed, "epoch": epoch, "view": view}
            centres = policy.cutout_centres(ids, config.image_size, **options)
            arrays[f"cutout_{view}"] = centres - side // 2
    return Choices(tuple(passes), arrays)


def device_views(
    views: Tensor, ids: NDArray[np.int64], config: ViewsConfig, *, seed: int, epoch: int
) -> Tensor:
    """`choices` and `transformed` at once, where nothing runs ahead.

    Raises:
        ValueError: views or ids of another shape.
    """
    _checked(views, config)
    if ids.shape != views.shape[:1]:
        raise ValueError(f"ids must have shape ({len(views)},), one per image, got {ids.shape}")
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
        _apply(images.flatten(0, 1), passes, arrays, config)
        for view in range(len(images)):
            if side := _kind(config, view).cutout:
                _cut_out(images[view], arrays[f"cutout_{view}"], side)
        return _normalise(images, config)


def _kind(config: ViewsConfig, view: int) -> ViewConfig:
    return config.contrastive if view else config.classification


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
        raise ValueError(
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
    images: Tensor, passes: Sequence[Pass], arrays: Mapping[str, Tensor], config: ViewsConfig
) -> None:
    """Carry out the passes in place on images (M, 3, H, W)."""
    indices, amounts = arrays["indices"], arrays["amounts"]
    fill = _constants(config, images.device).fill
    rows = _rows(images)
    for operation, chosen in passes:
        for part in _chunks(images, chosen.start, chosen.stop):
            index = indices[part]
            before = rows.index_select(0, index).view(torch.uint8).view(-1, *images.shape[1:])
            result = _operate(operation, before, amounts[part], fill)
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


def _operate(name: str, images: Tensor, amounts: Tensor, fill: Tensor) -> Tensor:
    if name in GEOMETRY:
        return warp(images, GEOMETRY[name](amounts), fill)
    return COLOUR[name](images, amounts)


def _cut_out(images: Tensor, corners: Tensor, side: int) -> None:
    """Blacken a square with these upper left corners, (N, 2), as far as it lies in the image."""
    position = torch.arange(images.shape[-1], device=images.device)
    starts = corners[..., None]
    within = (position >= starts) & (position < starts + side)  # (N, 2, S)
    images.masked_fill_((within[:, 0, :, None] & within[:, 1, None, :])[:, None], 0)


def _normalise(images: Tensor, config: ViewsConfig) -> Tensor:
    """(V, N, 3, H, W) uint8 to float32; every (N, 3, H, W) and all of them are channels_last."""
    constants = _constants(config, images.device)
    flat = images.flatten(0, 1)
    values = torch.empty_like(flat, dtype=torch.float32, memory_format=torch.channels_last)
    for part in _chunks(flat, 0, len(flat)):
        values[part] = flat[part].float().mul_(constants.scale).sub_(constants.shift)
    return values.view(images.shape)


class _Constants(NamedTuple):
    fill: Tensor  # (3,), of warps
    scale: Tensor  # (3, 1, 1); so also shift: values * scale - shift are normalised
    shift: Tensor


def _constants(config: ViewsConfig, device: torch.device) -> _Constants:
    """Sent once for each device: sending them with every batch would be three copies more."""
    return _made_constants(config.mean, config.std, device)


@lru_cache(16)
def _made_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> _Constants:
    means, stds = np.array(mean, np.float32), np.array(std, np.float32)[:, None, None]
    found = (255 * means, 1 / (255 * stds), means[:, None, None] / stds)
    return _Constants(*(torch.from_numpy(array).to(device) for array in found))
