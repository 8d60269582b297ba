"""The device half of the views: colour and normalisation of a whole batch, where the views are.

Axes: N images, V contrastive views, M = (1 + V) * N, S stages, H = W = views.image_size.

Order, as in published recipes: jitter, grayscale, blur, policy, cutout, normalise. Warps are
bilinear and filled with views.mean. Cutout is black, zero before it is normalised, as in the
published code for long-tailed CIFAR. Between operations images are 8-bit, as they are in Pillow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.config import ViewsConfig
from bcl_ray.views import policy
from bcl_ray.views.operations import COLOUR, GEOMETRY, warp

# Values per pass on a CPU: an operation's temporaries then stay in its cache (measured 2026-11).
_CPU_CHUNK = 2**19


def device_views(
    views: Tensor, ids: NDArray[np.int64], config: ViewsConfig, *, seed: int, epoch: int
) -> Tensor:
    """Colour, cut out and normalise: (1 + V, N, 3, H, W) float32; flattened, channels_last.

    Random choices are drawn on the host, keyed by (seed, epoch, id, view), and sent in one copy
    per array; nothing is read back, so that a GPU is never waited for.

    Args:
        views: what `host.train_views` made, (N, 1 + V, H, W, 3) uint8, on the device to work on.
        ids: the images' stable numbers, (N,), on the host.

    Raises:
        ValueError: views or ids of another shape.
    """
    _checked(views, config)
    num_images, num_views = views.shape[:2]
    if ids.shape != (num_images,):
        raise ValueError(f"ids must have shape ({num_images},), one per image, got {ids.shape}")
    with _one_thread(views.device):
        plan = policy.planned(ids, config, num_views=num_views, seed=seed, epoch=epoch)
        images = _planes(views)
        _apply(images.flatten(0, 1), plan, config)
        for view in range(num_views):
            side = (config.contrastive if view else config.classification).cutout
            if side:
                centres = policy.cutout_centres(
                    ids, config.image_size, seed=seed, epoch=epoch, view=view
                )
                _cut_out(images[view], centres - side // 2, side)
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


def _apply(images: Tensor, plan: policy.Plan, config: ViewsConfig) -> None:
    """Carry out the plan in place on images (M, 3, H, W): per stage, one group per operation."""
    order = plan.kinds.argsort(axis=1, kind="stable")
    kinds = np.take_along_axis(plan.kinds, order, axis=1)
    amounts = sent(np.take_along_axis(plan.amounts, order, axis=1), images.device)
    indices = sent(order, images.device)
    fill = sent(255 * np.array(config.mean, np.float32), images.device)
    rows = _rows(images)
    for stage, row in enumerate(kinds):
        found, starts = np.unique(row, return_index=True)
        for kind, start, end in zip(found, starts, [*starts[1:], len(row)], strict=True):
            if kind == policy.NONE:
                continue
            for part in _chunks(images, start, end):
                index = indices[stage, part]
                chosen = rows.index_select(0, index).view(torch.uint8).view(-1, *images.shape[1:])
                result = _operate(policy.NAMES[kind], chosen, amounts[stage, part], fill)
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


def _cut_out(images: Tensor, corners: NDArray[np.int64], side: int) -> None:
    """Blacken a square with these upper left corners, (N, 2), as far as it lies in the image."""
    starts = sent(corners, images.device)
    position = torch.arange(images.shape[-1], device=images.device)
    within = (position >= starts[..., None]) & (position < starts[..., None] + side)  # (N, 2, S)
    images.masked_fill_((within[:, 0, :, None] & within[:, 1, None, :])[:, None], 0)


def _normalise(images: Tensor, config: ViewsConfig) -> Tensor:
    """(V, N, 3, H, W) uint8 to float32; every (N, 3, H, W) and all of them are channels_last."""
    std = np.array(config.std, np.float32)[:, None, None]
    scale = sent(1 / (255 * std), images.device)
    shift = sent(np.array(config.mean, np.float32)[:, None, None] / std, images.device)
    flat = images.flatten(0, 1)
    values = torch.empty_like(flat, dtype=torch.float32, memory_format=torch.channels_last)
    for part in _chunks(flat, 0, len(flat)):
        values[part] = flat[part].float().mul_(scale).sub_(shift)
    return values.view(images.shape)


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device; to a GPU from pinned memory, so that the host need not wait."""
    # Not from_numpy, which warns of Ray's arrays: they are read-only.
    return torch.tensor(array, pin_memory=device.type == "cuda").to(device, non_blocking=True)
