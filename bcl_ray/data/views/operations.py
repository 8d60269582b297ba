"""Operations on batches of 8-bit images, a family at a time, with coefficients for each image.

Each takes images (n, 3, H, W) uint8, H = W = S, and the coefficients of their kinds of operation
(`coefficients`), (n, ...) on the same device; it gives new images. They follow Pillow, as
published recipes used it: luma in fixed point, blends cut to whole numbers after each operation.

An image's result does not depend on the batch around it. Sums are therefore sums of whole
numbers, exact in any order, and no step multiplies and adds at once unless both are exact: where
that is fused, it rounds once instead of twice, and vector code and its scalar remainder differ in
it. On a GPU every line is a kernel to launch, which costs more than small images do.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Constants(NamedTuple):
    """What all images have in common, on their device."""

    fill: Tensor
    """Colour of what a warp brings in from outside, 0 to 255, (3, 1, 1)."""
    centres: Tensor
    """Of the pixels along an axis, from -1 to 1 at the image's edges, (S,)."""
    scale: Tensor
    """(3, 1, 1); values * scale - shift are normalised."""
    shift: Tensor
    """(3, 1, 1)."""
    hexcone: Tensor
    """For red, green and blue: see `hue`, (4, 3, 1, 1)."""


@lru_cache(16)
def constants(
    mean: tuple[float, ...], std: tuple[float, ...], size: int, device: torch.device
) -> Constants:
    """Sent once for each device: sending them with every batch would be copies more.

    Args:
        mean, std: of the channels, on a scale of 0 to 1.
        size: S.
        device: where the images are.
    """
    means, stds = (np.array(part, np.float32)[:, None, None] for part in (mean, std))
    centres = (2 * np.arange(size, dtype=np.float32) + 1) / np.float32(size) - 1
    hexcone = np.array([[0, 2, 4], [3, 2, 4], [1, -1, -1], [-1, 2, 2]], np.float32)
    found = (255 * means, centres, 1 / (255 * stds), means / stds, hexcone[:, :, None, None])
    return Constants(*(torch.from_numpy(array).to(device) for array in found))


class Context(NamedTuple):
    """What an operation may ask for."""

    kinds: Mapping[str, slice]
    """Where the images of each kind of operation lie."""
    constants: Constants


Operation = Callable[[Tensor, Tensor, Context], Tensor]


def blend(images: Tensor, factors: Tensor, context: Context) -> Tensor:
    """At factor 0 a base, at 1 the images; other factors on the line through both.

    The base is black (brightness), the image's mean luma (contrast), or each pixel's luma.
    """
    kinds = context.kinds
    black = kinds.get("brightness", slice(0, 0)).stop
    values = images.float()
    base = values.new_full((len(images), 1, *images.shape[2:]), 0.5)
    if black < len(images):
        # ITU-R 601-2 in Pillow's 16-bit fixed point: below 2**24 of its units, exact in float.
        for channel, weight in enumerate((19595, 38470, 7471)):
            base[black:].add_(values[black:, channel : channel + 1], alpha=weight / 2**16)
    base.floor_()
    if rows := kinds.get("contrast"):
        mean = base[rows].mean(dim=(2, 3), keepdim=True, dtype=torch.float64)
        base[rows] = mean.add_(0.5).floor_()
    return _blend(base, values, factors)


def sharpen(images: Tensor, factors: Tensor, context: Context) -> Tensor:  # noqa: ARG001
    """Factor towards or away from a 3 x 3 smoothing; border pixels are their own smoothing."""
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    sums.add_(wide[:, :, 1:-1, 1:-1], alpha=4)  # the centre weighs 5 of 13
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (sums / 13).round_()
    return _blend(smooth, images.float(), factors)


def blur(images: Tensor, weights: Tensor, context: Context) -> Tensor:  # noqa: ARG001
    """Smooth by weights, (n, 1 + reach); the border is mirrored, as torchvision does it."""
    reach = weights.shape[1] - 1
    smooth = functional.pad(images.float(), (reach,) * 4, mode="reflect")
    for axis in (2, 3):
        smooth = _symmetric_sum(smooth, weights, axis)
    return _bytes(smooth.round_())


def _symmetric_sum(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Weigh each value by weights[:, 0], its neighbours at distance i along an axis by [:, i]."""
    reach = weights.shape[1] - 1
    size = values.shape[axis] - 2 * reach
    total = values.narrow(axis, reach, size) * _each(weights[:, 0])
    for i in range(1, reach + 1):
        pair = values.narrow(axis, reach - i, size) + values.narrow(axis, reach + i, size)
        total += pair.mul_(_each(weights[:, i]))
    return total


def hue(images: Tensor, sextants: Tensor, context: Context) -> Tensor:
    """Turn of the hue circle by sixths of it, -3 to 3, in the hexcone model of HSV."""
    begins, middles, signs, heights = context.constants.hexcone
    values = torch.cat([images, images[:, :2]], dim=1).float()  # red, green, blue, red, green
    rgb = values[:, :3]
    value, least = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    chroma = value - least
    # The sextant if red, green, or blue is the largest; gray pixels have none, any will do.
    turned = (values[:, 1:4] - values[:, 2:]).div_(chroma.clamp(min=1)).add_(begins)
    # 1 where red, or green, is not the largest: torch.where would take twenty times as long.
    no_red, no_green = (value - rgb[:, :2]).clamp_(max=1).tensor_split(2, dim=1)
    sextant = torch.lerp(turned[:, 1:2], turned[:, 2:], no_green)
    sextant = torch.lerp(turned[:, :1], sextant, no_red).add_(_each(sextants))
    sextant -= (sextant / 6).floor_().mul_(6)  # remainder_ takes five times as long
    # How red, green and blue the turned hue is, before it is cut to 0 to 1.
    shares = (sextant - middles).abs_().mul_(signs).add_(heights)
    return _whole(shares.clamp_(0, 1).mul_(chroma).add_(least).round_())


def look_up(images: Tensor, tables: Tensor, context: Context) -> Tensor:
    """Each value's entry in the image's table, (n, 256) uint8."""
    values = images.flatten(2).long()  # (n, 3, P)
    channels = tables[:, None].expand(-1, 3, -1)
    for name, made in ADAPTIVE.items():
        if rows := context.kinds.get(name):
            channels = channels.contiguous()
            channels[rows] = made(values[rows], channels[rows])
    return channels.gather(2, values).view_as(images)


def _autocontrast(values: Tensor, ramp: Tensor) -> Tensor:
    """Stretch each channel to 0 and 255; a flat channel stays."""
    least, most = values.aminmax(dim=2, keepdim=True)
    flat = most == least
    least = least.masked_fill(flat, 0)
    span = (most - least).masked_fill_(flat, 255)
    return ((ramp - least).mul_(255) / span).clamp_(0, 255)


def _equalize(values: Tensor, ramp: Tensor) -> Tensor:
    """Even out each channel's histogram, by Pillow's rule."""
    histogram = values.new_zeros(*values.shape[:2], 256)
    histogram.scatter_add_(2, values, values.new_ones(()).expand_as(values))
    brightest = histogram.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = histogram.cumsum(2) - histogram  # pixels that are darker
    table = below.add_(step // 2).floor_divide_(step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, ramp)


ADAPTIVE = {"autocontrast": _autocontrast, "equalize": _equalize}
"""Tables that depend on the image: of values (n, 3, P) int64, and 0 to 255 as (n, 3, 256)."""


def warp(images: Tensor, affine: Tensor, context: Context) -> Tensor:
    """Bilinear affine warp about the centre.

    Affine ((a, b, c), (d, e, f)), (n, 2, 3): the result at (x, y) is the image at
    (ax + by + c, dx + ey + f), where -1 and 1 are the image's edges.
    """
    fill, centres = context.constants.fill, context.constants.centres
    a, b, c = affine[..., None, None].unbind(2)  # (n, 2, 1, 1): for x and for y
    grid = (a * centres + b * centres[:, None]).add_(c).permute(0, 2, 3, 1)
    # Outside is zero to grid_sample; with the fill subtracted, zero is the fill.
    warped = functional.grid_sample(images - fill, grid, align_corners=False)
    return _whole(warped.add_(fill).round_())


OPERATIONS: dict[str, Operation] = {
    function.__name__: function for function in (warp, sharpen, blend, look_up, blur, hue)
}


def _each(amounts: Tensor) -> Tensor:
    return amounts[:, None, None, None]


def _bytes(values: Tensor) -> Tensor:
    """Cut to 0 to 255 and to whole numbers."""
    return _whole(values.clamp_(0, 255))


def _whole(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        values = values.to(torch.int16)  # two steps take a quarter of one's time there
    return values.to(torch.uint8)


def _blend(base: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    return _bytes(values.sub_(base).mul_(_each(factors)).add_(base))
