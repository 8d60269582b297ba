"""Crops of images that lie decoded on the device: the views of `host`, bit for bit.

`host` crops with OpenCV, whose bilinear filter for 8-bit images is one of integers: weights of
11 bits, along the rows first (modules/imgproc/src/resize.cpp). So are the operations here. What
is drawn for an image, `host.drawn_crops` draws for both.

Axes: N images of a batch, R of the split, V contrastive views, S = views.image_size: images are
S pixels high and wide. Two taps belong to each pixel of a result, on either axis.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views import host
from bcl_ray.data.views.device import _one_thread
from bcl_ray.experiment.options import ViewsConfig

_ONE = 2048  # weights are multiples of 1 / 2048


def crops(
    ids: NDArray[np.int64], config: ViewsConfig, *, num_views: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Draw for the images with these ids, (N,); on the host.

    Returns:
        (N, num_views, 4): top and left of each crop, and the rows of the tables for its height and
        for its width.
    """
    size = config.image_size
    sides = np.full((len(ids), 2), size)
    found = np.empty((len(ids), num_views, 4), np.int64)
    for view in range(num_views):
        drawn = host.drawn_crops(ids, sides, config, seed=seed, epoch=epoch, view=view)
        found[:, view] = drawn.boxes
        found[:, view, 3] += (size + 1) * (1 + drawn.flips)
    return found


def cropped(images: Tensor, rows: Tensor, drawn: Tensor) -> Tensor:
    """Crop, resize and flip: (N, 1 + V, S, S, 3) uint8, as `host.train_views` makes them.

    Nothing is sent or read back, so that a GPU is never waited for.

    Args:
        images: (R, S, S, 3) uint8.
        rows: which of them are the batch's, (N,) int64.
        drawn: what `crops` drew, (N, 1 + V, 4) int64.
    """
    with _one_thread(images.device):
        places, down, across = _pixels(images.shape[1], rows, drawn)
        taps = images.view(-1, 3).index_select(0, places.view(-1)).view(*places.shape, 3)
        left, right = taps.unbind(4)
        wide, wide_right = across.unbind(4)
        lines = left * wide + right * wide_right  # (N, 1 + V, 2 taps, S, S, 3) int32
        upper, lower = (((lines >> 4) * down) >> 16).unbind(2)
        return ((upper + lower + 2) >> 2).to(torch.uint8)


def _pixels(size: int, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each pixel of a result is made of.

    Returns:
        where the four pixels lie among those of all images, (N, 1 + V, 2, S, 2, S): two taps down,
        two across; weights down, (N, 1 + V, 2, S, 1, 1), and across, (N, 1 + V, 1, 1, 2, S, 1).
    """
    places, weights = _tables(size, drawn.device)
    corners, chosen = drawn[..., :2], drawn[..., 2:]
    places = places[chosen] + corners[..., None, None]  # (N, 1 + V, 2 axes, 2 taps, S)
    inside = (places >= 0) & (places < size)
    weights = weights[chosen] * inside  # of what lies beyond the edges, none
    down, across = places.clamp_(0, size - 1).unbind(2)
    lines = down + size * rows[:, None, None, None]
    tall, wide = weights.unbind(2)
    return (
        size * lines[..., None, None] + across[:, :, None, None],
        tall[..., None, None],
        wide[:, :, None, None, ..., None],
    )


@lru_cache(4)
def _tables(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the taps of each pixel of a result lie in a box, and their weights.

    Both (3 * (size + 1), 2, size): for boxes of 0 to size rows, of so many columns, and of so
    many columns whose result is flipped. Places int64, weights int32.
    """
    down = [_taps(side, size, stretched=False) for side in range(1, size + 1)]
    across = [_taps(side, size, stretched=True) for side in range(1, size + 1)]
    flipped = [(places[:, ::-1], weights[:, ::-1]) for places, weights in across]
    nothing = [(np.zeros((2, size)),) * 2]
    whole = [*nothing, *down, *nothing, *across, *nothing, *flipped]
    places, weights = (np.stack(part) for part in zip(*whole, strict=True))
    return (
        torch.from_numpy(places.astype(np.int64)).to(device),
        torch.from_numpy(weights.astype(np.int32)).to(device),
    )


def _taps(side: int, size: int, *, stretched: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places and weights, (2, size) each, for one axis of a box that becomes `size` pixels long.

    Args:
        side: pixels of the box.
        size: pixels of the result.
        stretched: whether the pixels at the ends weigh alone there, as along rows. Down columns
            they come twice, with both weights: their sum may be rounded otherwise.
    """
    share = (np.arange(size) + 0.5) * (1 / (size / side)) - 0.5
    share = share.astype(np.float32)  # as OpenCV rounds
    first = np.floor(share)
    share -= first
    if stretched:
        share[(first < 0) | (first >= side - 1)] = 0
        first = first.clip(0, side - 1)
    places = np.stack([first, first + 1]).clip(0, side - 1)
    return places, np.rint(np.stack([1 - share, share]) * np.float32(_ONE))


def is_exact(images: NDArray[np.uint8]) -> bool:
    """Whether this machine's OpenCV gives what `cropped` gives; (N, S, S, 3), N >= 1.

    It has other filters for some processors, and had others in some versions. Crops of all
    heights and widths are compared.
    """
    size = images.shape[1]
    sides = np.arange(1, size + 1)
    drawn = np.zeros((size, 2, 4), np.int64)
    drawn[:, 0, 2:] = np.stack([sides, sides[::-1] + size + 1], axis=1)
    drawn[:, 1, 2:] = np.stack([sides, sides + size + 1], axis=1)
    rows = np.arange(size) % len(images)
    ours = cropped(*(torch.from_numpy(array) for array in (images, rows, drawn))).numpy()
    with host.one_thread():
        theirs = [
            [host.resized(images[row][:height, :width], size, size) for width in widths]
            for row, height, widths in zip(
                rows, sides, zip(sides[::-1], sides, strict=True), strict=True
            )
        ]
    return np.array_equal(ours, np.array(theirs))
