"""Crops of images that are kept decoded on the device: the same views as `host` makes, bit for bit.

OpenCV's bilinear filter for 8-bit images, which `host` uses, works with integers: weights have 11
bits, and rows are filtered first (modules/imgproc/src/resize.cpp). The operations here do the same.
Crops are drawn by `crops.draw_crops` in both cases.

A pixel of a result is a weighted sum of two taps on each axis, so of four pixels of the image.

Axes: N images of a batch, R images of the split, V contrastive views, S = views.image_size, which
is the height and width of all images.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views import crops, host
from bcl_ray.data.views.device import one_thread_on_cpu
from bcl_ray.experiment.options import ViewsConfig

_WEIGHT_UNIT = 2048  # weights are integers in units of 1 / 2048


def draw_table_crops(
    ids: NDArray[np.int64], config: ViewsConfig, *, num_views: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Draw crops for the images with these ids, (N,), on the host.

    Returns:
        (N, num_views, 4): top and left of each crop, and the rows of `_tables` for its height and
        its width.
    """
    size = config.image_size
    sides = np.full((len(ids), 2), size)
    table_crops = np.empty((len(ids), num_views, 4), np.int64)
    for view in range(num_views):
        drawn = crops.draw_crops(ids, sides, config, seed=seed, epoch=epoch, view=view)
        table_crops[:, view] = drawn.boxes
        # Its width's row: after the heights, and after the widths too if it is flipped (`_tables`).
        table_crops[:, view, 3] += (size + 1) * (1 + drawn.flips)
    return table_crops


def apply_crops(images: Tensor, rows: Tensor, table_crops: Tensor) -> Tensor:
    """Crop, resize and flip images as `host.train_views` does.

    Nothing is copied to or from the device, so the host never waits for a GPU.

    Args:
        images: All images of the split, (R, S, S, 3) uint8.
        rows: Positions of the batch's images, (N,) int64.
        table_crops: Result of `draw_table_crops`, (N, 1 + V, 4) int64.

    Returns:
        Views, (N, 1 + V, S, S, 3) uint8.
    """
    with one_thread_on_cpu(images.device):
        pixels, weights_down, weights_across = _taps_of(images.shape[1], rows, table_crops)
        taps = images.view(-1, 3).index_select(0, pixels.view(-1)).view(*pixels.shape, 3)
        left, right = taps.unbind(4)
        weight_left, weight_right = weights_across.unbind(4)
        lines = left * weight_left + right * weight_right  # (N, 1 + V, 2 taps, S, S, 3) int32
        upper, lower = (((lines >> 4) * weights_down) >> 16).unbind(2)
        return ((upper + lower + 2) >> 2).to(torch.uint8)


def _taps_of(size: int, rows: Tensor, table_crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Taps of each pixel of the results: two down (upper, lower) and two across (left, right).

    Returns:
        The taps' positions among the pixels of all images, (N, 1 + V, 2, S, 2, S); their weights
        down, (N, 1 + V, 2, S, 1, 1); and their weights across, (N, 1 + V, 1, 1, 2, S, 1).
    """
    positions, weights = _tables(size, table_crops.device)
    corners, chosen = table_crops[..., :2], table_crops[..., 2:]
    positions = positions[chosen] + corners[..., None, None]  # (N, 1 + V, 2 axes, 2 taps, S)
    inside = (positions >= 0) & (positions < size)
    weights = weights[chosen] * inside  # pixels beyond the edges have weight 0
    down, across = positions.clamp_(0, size - 1).unbind(2)
    lines = down + size * rows[:, None, None, None]
    weights_down, weights_across = weights.unbind(2)
    return (
        size * lines[..., None, None] + across[:, :, None, None],
        weights_down[..., None, None],
        weights_across[:, :, None, None, ..., None],
    )


@lru_cache(4)
def _tables(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Taps in a box for every length of the box: positions int64, and weights int32.

    Both are (3 * (size + 1), 2, size). The first size + 1 rows are for heights from 0 to size, the
    next for widths, the last for widths of boxes that are flipped.
    """
    down = [_taps(length, size, clamp=False) for length in range(1, size + 1)]
    across = [_taps(length, size, clamp=True) for length in range(1, size + 1)]
    flipped = [(positions[:, ::-1], weights[:, ::-1]) for positions, weights in across]
    empty = [(np.zeros((2, size)),) * 2]
    rows = [*empty, *down, *empty, *across, *empty, *flipped]
    positions, weights = (np.stack(column) for column in zip(*rows, strict=True))
    return (
        torch.from_numpy(positions.astype(np.int64)).to(device),
        torch.from_numpy(weights.astype(np.int32)).to(device),
    )


def _taps(length: int, size: int, *, clamp: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions and weights, (2, size) each, for one axis of a box that is resized.

    Args:
        length: Length of the box in pixels.
        size: Length of the result in pixels.
        clamp: What happens at the ends, where one tap would be outside of the box. True, as OpenCV
            does along rows: the other tap has the whole weight. False, as OpenCV does down columns:
            both taps are the same pixel, with both weights, so that the sum may be rounded
            differently.
    """
    share = (np.arange(size) + 0.5) * (1 / (size / length)) - 0.5
    share = share.astype(np.float32)  # rounded here, as in OpenCV
    first = np.floor(share)
    share -= first
    if clamp:
        share[(first < 0) | (first >= length - 1)] = 0
        first = first.clip(0, length - 1)
    positions = np.stack([first, first + 1]).clip(0, length - 1)
    return positions, np.rint(np.stack([1 - share, share]) * np.float32(_WEIGHT_UNIT))


def is_exact(images: NDArray[np.uint8]) -> bool:
    """Whether this machine's OpenCV and `apply_crops` give the same results.

    OpenCV has different filters for some processors, and had different ones in some versions.
    Crops of all heights and widths are compared.

    Args:
        images: At least one image, (N, S, S, 3).
    """
    size = images.shape[1]
    lengths = np.arange(1, size + 1)
    # Two for every height: of falling and rising width.
    table_crops = np.zeros((size, 2, 4), np.int64)
    table_crops[:, 0, 2:] = np.stack([lengths, lengths[::-1] + size + 1], axis=1)
    table_crops[:, 1, 2:] = np.stack([lengths, lengths + size + 1], axis=1)
    rows = np.arange(size) % len(images)
    actual = apply_crops(
        *(torch.from_numpy(array) for array in (images, rows, table_crops))
    ).numpy()
    with host.one_thread():
        expected = [
            [host.resize(images[row][:height, :width], size, size) for width in widths]
            for row, height, widths in zip(
                rows, lengths, zip(lengths[::-1], lengths, strict=True), strict=True
            )
        ]
    return np.array_equal(actual, np.array(expected))
