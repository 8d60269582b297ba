"""The host half of the views: encoded images to uint8 crops, without torch.

Axes: N images, V contrastive views, H = W = views.image_size.

Every image is decoded once, whatever the number of views.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.decode import Pixels, decode
from bcl_ray.data.views import keyed
from bcl_ray.experiment.options import ViewConfig, ViewsConfig
from bcl_ray.machine.errors import UserError

_TRIES = 10  # torchvision's RandomResizedCrop looks as often for a box that fits
_FLIP, _Y, _X, _BOX = 0, 1, 2, 3  # columns of an image's draws; two per try from _BOX on
_AT_ONCE = 32  # images that are decoded before they are cropped: their boxes are drawn together


def train_views(
    images: Sequence[bytes],
    ids: NDArray[np.int64],
    config: ViewsConfig,
    *,
    num_contrastive: int,
    seed: int,
    epoch: int,
) -> Pixels:
    """Decode, crop and flip: (N, 1 + V, H, W, 3), RGB, on one core.

    View 0 is the classification view (views.classification), the others are contrastive.

    Args:
        images: N encoded files.
        ids: the images' stable numbers, (N,): they key every random choice.
        num_contrastive: V, 0 or more.

    Raises:
        ValueError: an image does not decode; its id is named.
    """
    size = config.image_size
    views = np.empty((len(images), 1 + num_contrastive, size, size, 3), np.uint8)
    with one_thread():
        for start in range(0, len(images), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            whole = [decoded(*pair) for pair in zip(images[part], ids[part], strict=True)]
            sides = np.array([pixels.shape[:2] for pixels in whole])
            for view in range(1 + num_contrastive):
                kind = config.contrastive if view else config.classification
                crops = drawn_crops(ids[part], sides, config, seed=seed, epoch=epoch, view=view)
                for pixels, box, flip, out in zip(
                    whole, crops.boxes.tolist(), crops.flips, views[part, view], strict=True
                ):
                    _crop(pixels, kind, box, out)
                    if flip:
                        cv2.flip(out, 1, out)
    return views


def eval_views(
    images: Sequence[bytes], config: ViewsConfig, *, ids: NDArray[np.int64] | None = None
) -> Pixels:
    """Shorter side to views.eval_resize, then the centre: (N, 1, H, W, 3), RGB, on one core.

    Args:
        images: N encoded files.
        ids: the images' stable numbers, (N,), for error messages; none: their positions.

    Raises:
        ValueError: an image does not decode; its id is named.
    """
    size = config.image_size
    views = np.empty((len(images), 1, size, size, 3), np.uint8)
    with one_thread():
        for n, image in enumerate(images):
            views[n, 0] = eval_view(decoded(image, n if ids is None else ids[n]), config)
    return views


def eval_view(pixels: Pixels, config: ViewsConfig) -> Pixels:
    """The one view of evaluation of decoded pixels, (H, W, 3), RGB; call it in `one_thread`."""
    size = config.image_size
    height, width = resized_sides(pixels.shape[0], pixels.shape[1], config)
    whole = resized(pixels, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return whole[top : top + size, left : left + size]


def resized_sides(height: int, width: int, config: ViewsConfig) -> tuple[int, int]:
    """Height and width that an image has in evaluation before its centre is cut out."""
    shorter = min(height, width)
    return height * config.eval_resize // shorter, width * config.eval_resize // shorter


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep OpenCV to the calling thread: a data task owns one core, and its neighbours the others.

    OpenCV's setting is the process's, so it is put back. Both calls take under a microsecond.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def decoded(image: bytes, name: int | np.int64) -> Pixels:
    """Decode an image, (H, W, 3), RGB; its name is for the error message.

    Raises:
        ValueError: it does not decode.
    """
    try:
        return decode(image)
    except ValueError as error:
        raise UserError(
            f"image with id {name} {error}: it was changed since it was sharded, `bcl-ray shards "
            "verify` finds the shard"
        ) from None


class Crops(NamedTuple):
    """What is cut out of each image for one of its views."""

    boxes: NDArray[np.int64]
    """Top, left, height and width, (N, 4). Crop 'resized': of a part of the image. Crop 'padded':
    of image_size pixels a side, in the image at that size, and partly beyond its edges."""
    flips: NDArray[np.bool_]
    """Whether the result is flipped from left to right, (N,)."""


def drawn_crops(
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
        ids: the images' stable numbers, (N,).
        sides: height and width of each decoded image, (N, 2).
        view: 0 is the classification view, the others are contrastive.
    """
    kind = config.contrastive if view else config.classification
    draws = keyed.uniforms(seed, epoch, ids, view, _BOX + 2 * _TRIES)
    if kind.crop == "padded":
        shifts = (draws[:, [_Y, _X]] * (2 * kind.padding + 1)).astype(np.int64) - kind.padding
        boxes = np.concatenate([-shifts, np.full_like(shifts, config.image_size)], axis=1)
    else:
        boxes = random_boxes(sides[:, 0], sides[:, 1], kind, draws)
    return Crops(boxes, draws[:, _FLIP] < kind.flip)


def random_boxes(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    kind: ViewConfig,
    draws: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Random shares of images, as torchvision's RandomResizedCrop has them.

    When no try fits an image, the largest central box with an allowed aspect ratio.

    Args:
        heights: of the images, (N,); so also widths.
        kind: whose scale and ratio are followed.
        draws: uniform in [0, 1), (N, 23): see the columns above.

    Returns:
        top, left, height and width, (N, 4).
    """
    (least, most), (narrowest, widest) = kind.scale, kind.ratio
    tries = draws[:, _BOX : _BOX + 2 * _TRIES]
    areas = (heights * widths)[:, None] * (least + (most - least) * tries[:, ::2])
    ratios = narrowest * (widest / narrowest) ** tries[:, 1::2]  # uniform in their logarithm
    found_widths, found_heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (found_widths > 0) & (found_widths <= widths[:, None])
    fits &= (found_heights > 0) & (found_heights <= heights[:, None])
    first, fitted = (np.arange(len(draws)), fits.argmax(axis=1)), fits.any(axis=1)
    central = np.clip(widths / heights, narrowest, widest)
    shape = np.where(
        fitted,
        (found_heights[first], found_widths[first]),
        (
            np.minimum(heights, np.maximum(1, np.rint(widths / central))),
            np.minimum(widths, np.maximum(1, np.rint(heights * central))),
        ),
    ).astype(np.int64)
    room = np.stack([heights, widths]) - shape
    corners = np.where(fitted, (draws[:, [_Y, _X]].T * (room + 1)).astype(np.int64), room // 2)
    return np.concatenate([corners, shape]).T


def _crop(pixels: Pixels, kind: ViewConfig, box: list[int], out: Pixels) -> None:
    """Fill out, (S, S, 3), with a box of the image."""
    top, left, height, width = box
    size = len(out)
    if kind.crop == "resized":
        resized(pixels[top : top + height, left : left + width], size, size, out)
        return
    if pixels.shape != out.shape:
        pixels = resized(pixels, size, size)
    out[:] = 0  # what lies beyond the edges
    out[max(-top, 0) : size - top, max(-left, 0) : size - left] = pixels[
        max(top, 0) : size + top, max(left, 0) : size + left
    ]


def resized(pixels: Pixels, height: int, width: int, out: Pixels | None = None) -> Pixels:
    """Bilinear, antialiased by averaging supersamples: close to Pillow's in 40 % of its time.

    Shrinking by a factor f, OpenCV's bilinear filter sees 2 pixels where 2f belong to a result.
    So it samples ceil(f) times as densely, and the mean of these samples is the result. Up to
    f = 1.1 the plain filter is the closer one (measured 2026-11, as are the other claims).
    """
    rows, columns = _supersampling(len(pixels), height), _supersampling(pixels.shape[1], width)
    how = cv2.INTER_LINEAR
    if rows * columns > 1:
        pixels = cv2.resize(pixels, (width * columns, height * rows), interpolation=how)
        how = cv2.INTER_AREA
    result: Pixels = cv2.resize(pixels, (width, height), out, interpolation=how)
    return result


def _supersampling(source: int, target: int) -> int:
    return math.ceil(source / target) if source > 1.1 * target else 1
