"""The host half of the views: encoded images to uint8 crops, without torch.

Axes: N images, V contrastive views, H = W = views.image_size.

Every image is decoded once, whatever the number of views.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray.config import ViewConfig, ViewsConfig
from bcl_ray.pixels import Pixels, decode
from bcl_ray.views import keyed

_TRIES = 10  # torchvision's RandomResizedCrop looks as often for a box that fits
_FLIP, _Y, _X, _BOX = 0, 1, 2, 3  # columns of an image's draws; two per try from _BOX on


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
    kinds = [config.classification] + [config.contrastive] * num_contrastive
    size = config.image_size
    views = np.empty((len(images), len(kinds), size, size, 3), np.uint8)
    draws = [
        keyed.uniforms(seed, epoch, ids, view, _BOX + 2 * _TRIES).tolist()
        for view in range(len(kinds))
    ]
    with one_thread():
        for n, image in enumerate(images):
            pixels = _decoded(image, ids[n])
            for view, kind in enumerate(kinds):
                _crop(pixels, kind, draws[view][n], views[n, view])
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
            views[n, 0] = eval_view(_decoded(image, n if ids is None else ids[n]), config)
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


def _decoded(image: bytes, name: int | np.int64) -> Pixels:
    try:
        return decode(image)
    except ValueError as error:
        raise ValueError(
            f"image with id {name} {error}: it was changed since it was sharded, `bcl-ray shards "
            "verify` finds the shard"
        ) from None


def _crop(pixels: Pixels, kind: ViewConfig, draws: list[float], view: Pixels) -> None:
    """Fill view, (S, S, 3), with a random crop of pixels, flipped or not."""
    if kind.crop == "padded":
        _padded_crop(pixels, kind.padding, draws, view)
    else:
        top, left, height, width = random_box(pixels.shape[0], pixels.shape[1], kind, draws)
        resized(pixels[top : top + height, left : left + width], len(view), len(view), view)
    if draws[_FLIP] < kind.flip:
        cv2.flip(view, 1, view)


def _padded_crop(pixels: Pixels, padding: int, draws: list[float], view: Pixels) -> None:
    """The whole image, shifted by up to padding on each axis; what it leaves is zero."""
    size = len(view)
    if pixels.shape != view.shape:
        pixels = resized(pixels, size, size)
    down, right = (int(draws[axis] * (2 * padding + 1)) - padding for axis in (_Y, _X))
    view[:] = 0
    view[max(down, 0) : size + down, max(right, 0) : size + right] = pixels[
        max(-down, 0) : size - down, max(-right, 0) : size - right
    ]


def random_box(
    height: int, width: int, kind: ViewConfig, draws: list[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random share of the image: torchvision's RandomResizedCrop.

    When no try fits, the largest central box with an allowed aspect ratio.
    """
    (least, most), (narrowest, widest) = kind.scale, kind.ratio
    for i in range(_BOX, _BOX + 2 * _TRIES, 2):
        area = height * width * (least + (most - least) * draws[i])
        ratio = narrowest * (widest / narrowest) ** draws[i + 1]  # uniform in its logarithm
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[_Y] * (height - box_height + 1))
            left = int(draws[_X] * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, narrowest), widest)
    box_width = min(width, max(1, round(height * ratio)))
    box_height = min(height, max(1, round(width / ratio)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


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
