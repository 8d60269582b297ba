"""Drawing the crops of each image: which box, and whether it is flipped.

Axes: N images.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.keyed import Stream, uniforms
from bcl_ray.experiment.options import ViewConfig, ViewsConfig

_ATTEMPTS = 10  # to find a box that fits in the image, as in torchvision's RandomResizedCrop
# Columns of an image's random numbers; each attempt has two, from _BOX on.
_FLIP, _Y, _X, _BOX = 0, 1, 2, 3


class Crops(NamedTuple):
    """One view's crop of each image."""

    boxes: NDArray[np.int64]
    """Top, left, height and width of each box in pixels, (N, 4). Crop 'resized': a part of the
    image. Crop 'padded': a box of image_size x image_size in the image at that size, which may
    extend beyond the edges."""
    flips: NDArray[np.bool_]
    """Whether the result is flipped horizontally, (N,)."""


def draw_crops(
    ids: NDArray[np.int64],
    sides: NDArray[np.int64],
    config: ViewsConfig,
    *,
    seed: int,
    epoch: int,
    view: int,
) -> Crops:
    """Draw one view's crops, keyed by (seed, epoch, id, view).

    Args:
        ids: The images' stable ids, (N,).
        sides: Height and width of each decoded image, (N, 2).
        view: Number of the view; 0 is for classification, the others are contrastive.
    """
    options = config.of_view(view)
    draws = uniforms(seed, epoch, ids, view, _BOX + 2 * _ATTEMPTS, stream=Stream.CROP)
    boxes = _BOXES[options.crop](sides, config.image_size, options, draws)
    return Crops(boxes, draws[:, _FLIP] < options.flip)


def shifted_boxes(
    _sides: NDArray[np.int64], size: int, options: ViewConfig, draws: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Boxes of crop 'padded', (N, 4); arguments as for `random_boxes`."""
    shifts = (draws[:, [_Y, _X]] * (2 * options.padding + 1)).astype(np.int64) - options.padding
    return np.concatenate([-shifts, np.full_like(shifts, size)], axis=1)


def random_boxes(
    sides: NDArray[np.int64], _size: int, options: ViewConfig, draws: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Boxes of crop 'resized', as in torchvision's RandomResizedCrop.

    If no attempt fits in an image, its box is the largest central one with an allowed aspect ratio.

    Args:
        sides: Height and width of each image, (N, 2).
        options: Options of this kind of view, of which `scale` and `ratio` are used.
        draws: Uniform numbers in [0, 1), (N, 23), in the columns that are named above.

    Returns:
        Top, left, height and width, (N, 4).
    """
    heights, widths = sides.T
    (least, most), (narrowest, widest) = options.scale, options.ratio
    attempts = draws[:, _BOX : _BOX + 2 * _ATTEMPTS]
    areas = (heights * widths)[:, None] * (least + (most - least) * attempts[:, ::2])
    ratios = narrowest * (widest / narrowest) ** attempts[:, 1::2]  # uniform in their logarithm
    box_widths, box_heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (box_widths > 0) & (box_widths <= widths[:, None])
    fits &= (box_heights > 0) & (box_heights <= heights[:, None])
    any_fits, first = fits.any(axis=1), (np.arange(len(draws)), fits.argmax(axis=1))
    central = np.clip(widths / heights, narrowest, widest)
    shape = np.where(
        any_fits,
        (box_heights[first], box_widths[first]),
        (
            np.minimum(heights, np.maximum(1, np.rint(widths / central))),
            np.minimum(widths, np.maximum(1, np.rint(heights * central))),
        ),
    ).astype(np.int64)
    free = np.stack([heights, widths]) - shape  # pixels by which the box can be shifted
    corners = np.where(any_fits, (draws[:, [_Y, _X]].T * (free + 1)).astype(np.int64), free // 2)
    return np.concatenate([corners, shape]).T


Boxes = Callable[[NDArray[np.int64], int, ViewConfig, NDArray[np.float64]], NDArray[np.int64]]
_BOXES: dict[str, Boxes] = {"padded": shifted_boxes, "resized": random_boxes}
