"""Operations on batches of 8-bit images: one function per family, with coefficients per image.

Each function takes images, (n, 3, H, W) uint8 with H = W = S, and coefficients from `coefficients`,
(n, ...), on the same device; it returns new images. Results follow Pillow, which published recipes
used: luma in fixed point, and values rounded down to whole numbers after each blend.

The result of an image does not depend on the rest of its batch, bit for bit. For this, sums over
pixels are sums of whole numbers, which are exact in any order. And no torch operation multiplies
and adds at once (as add_ with alpha does) unless both are exact: a fused multiply-add rounds once
instead of twice, and vector code may use it where the code for the remaining elements does not.

On a GPU, every line launches a kernel, which takes longer than the computation if images are small.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Constants(NamedTuple):
    """Constants that are the same for all images, on their device."""

    fill: Tensor
    """Colour with which a warp fills pixels from outside of the image, 0 to 255, (3, 1, 1)."""
    centres: Tensor
    """Coordinates of the pixels along an axis, (S,); -1 and 1 are the image's edges."""
    scale: Tensor
    """Factor of values in the normalisation, (3, 1, 1)."""
    shift: Tensor
    """What is subtracted after that, (3, 1, 1)."""
    hexcone: Tensor
    """Peak, middle, sign and height of each channel in `hue`, (4, 3, 1, 1)."""


@lru_cache(16)
def constants(
    mean: tuple[float, ...], std: tuple[float, ...], size: int, device: torch.device
) -> Constants:
    """The constants, cached so that they are copied to each device only once.

    Args:
        mean: Means of the channels, on a scale of 0 to 1.
        std: Standard deviations of the channels, on the same scale.
        size: S.
    """
    means, stds = (np.array(part, np.float32)[:, None, None] for part in (mean, std))
    centres = (2 * np.arange(size, dtype=np.float32) + 1) / np.float32(size) - 1
    hexcone = np.array([[0, 2, 4], [3, 2, 4], [1, -1, -1], [-1, 2, 2]], np.float32)
    arrays = (255 * means, centres, 1 / (255 * stds), means / stds, hexcone[:, :, None, None])
    return Constants(*(torch.from_numpy(array).to(device) for array in arrays))


class Context(NamedTuple):
    """What an operation may need besides images and coefficients."""

    kinds: Mapping[str, slice]
    """The rows of each of the family's operations among the images."""
    constants: Constants


Operation = Callable[[Tensor, Tensor, Context], Tensor]


def blend(images: Tensor, factors: Tensor, context: Context) -> Tensor:
    """Interpolate or extrapolate between a base (factor 0) and the images (factor 1).

    The base is black (brightness), the image's mean luma (contrast), or each pixel's luma
    (saturation and grayscale).
    """
    kinds = context.kinds
    first_luma = kinds.get("brightness", slice(0, 0)).stop  # brightness comes first; its base is 0
    values = images.float()
    base = values.new_full((len(images), 1, *images.shape[2:]), 0.5)
    if first_luma < len(images):
        # ITU-R 601-2 luma in Pillow's 16-bit fixed point, exact in float32: less than 2**24 units.
        for channel, weight in enumerate((19595, 38470, 7471)):
            base[first_luma:].add_(values[first_luma:, channel : channel + 1], alpha=weight / 2**16)
    base.floor_()
    if rows := kinds.get("contrast"):
        mean = base[rows].mean(dim=(2, 3), keepdim=True, dtype=torch.float64)
        base[rows] = mean.add_(0.5).floor_()
    return _blend(base, values, factors)


def sharpen(images: Tensor, factors: Tensor, _context: Context) -> Tensor:
    """Blend each image with its 3 x 3 smoothing; pixels at the border are not smoothed."""
    values = images.to(torch.int16)
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    sums.add_(values[:, :, 1:-1, 1:-1], alpha=4)  # the centre has weight 5 / 13, the others 1 / 13
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (sums / 13).round_()
    return _blend(smooth, images.float(), factors)


def blur(images: Tensor, weights: Tensor, _context: Context) -> Tensor:
    """Smooth with a symmetric kernel, whose weights at distances 0, 1, ... are (n, 1 + radius).

    Images are mirrored at the border, as in torchvision.
    """
    radius = weights.shape[1] - 1
    smooth = functional.pad(images.float(), (radius,) * 4, mode="reflect")
    for axis in (2, 3):
        smooth = _symmetric_sum(smooth, weights, axis)
    return _to_uint8(smooth.round_().clamp_(0, 255))


def _symmetric_sum(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Weighted sum of each value and its neighbours at distance i along an axis: weights[:, i]."""
    radius = weights.shape[1] - 1
    size = values.shape[axis] - 2 * radius
    total = values.narrow(axis, radius, size) * _per_image(weights[:, 0])
    for i in range(1, radius + 1):
        pair = values.narrow(axis, radius - i, size) + values.narrow(axis, radius + i, size)
        total += pair.mul_(_per_image(weights[:, i]))
    return total


def hue(images: Tensor, sextants: Tensor, context: Context) -> Tensor:
    """Rotate the hue by sextants of its circle, -3 to 3, in the hexcone model of HSV."""
    peaks, middles, signs, heights = context.constants.hexcone
    values = torch.cat([images, images[:, :2]], dim=1).float()  # red, green, blue, red, green
    rgb = values[:, :3]
    value, least = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    chroma = value - least
    # The hue in sextants if the largest channel is red, green or blue. For gray pixels it is
    # arbitrary, and does not matter.
    candidates = (values[:, 1:4] - values[:, 2:]).div_(chroma.clamp(min=1)).add_(peaks)
    # 1 where red (or green) is not the largest channel. torch.where would take 20 times as long.
    not_red, not_green = (value - rgb[:, :2]).clamp_(max=1).tensor_split(2, dim=1)
    sextant = torch.lerp(candidates[:, 1:2], candidates[:, 2:], not_green)
    sextant = torch.lerp(candidates[:, :1], sextant, not_red).add_(_per_image(sextants))
    sextant -= (sextant / 6).floor_().mul_(6)  # remainder_ takes five times as long
    # Red, green and blue at full saturation: |s - 3| - 1, 2 - |s - 2| and 2 - |s - 4|, clamped.
    shares = (sextant - middles).abs_().mul_(signs).add_(heights).clamp_(0, 1)
    return _to_uint8(shares.mul_(chroma).add_(least).round_())


def look_up(images: Tensor, tables: Tensor, context: Context) -> Tensor:
    """Replace each value by its entry in the image's table, (n, 256) uint8."""
    values = images.flatten(2).long()  # (n, 3, P) for P pixels
    channels = tables[:, None].expand(-1, 3, -1)
    for name, table_of in ADAPTIVE.items():
        if rows := context.kinds.get(name):
            channels = channels.contiguous()
            channels[rows] = table_of(values[rows], channels[rows])
    return channels.gather(2, values).view_as(images)


def _autocontrast(values: Tensor, ramp: Tensor) -> Tensor:
    """Tables that stretch each channel to 0 to 255; a constant channel does not change."""
    least, most = values.aminmax(dim=2, keepdim=True)
    flat = most == least
    least = least.masked_fill(flat, 0)
    span = (most - least).masked_fill_(flat, 255)
    return ((ramp - least).mul_(255) / span).clamp_(0, 255)


def _equalize(values: Tensor, ramp: Tensor) -> Tensor:
    """Tables that equalise each channel's histogram, by Pillow's rule."""
    histogram = values.new_zeros(*values.shape[:2], 256)
    histogram.scatter_add_(2, values, values.new_ones(()).expand_as(values))
    brightest = histogram.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    darker = histogram.cumsum(2) - histogram  # number of darker pixels
    table = darker.add_(step // 2).floor_divide_(step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, ramp)


ADAPTIVE = {"autocontrast": _autocontrast, "equalize": _equalize}
"""Functions that compute tables, (n, 3, 256), from the images' values, (n, 3, P) int64, and from
the identity table, (n, 3, 256)."""


def warp(images: Tensor, affine: Tensor, context: Context) -> Tensor:
    """Warp images by affine maps, with bilinear interpolation.

    The maps are ((a, b, c), (d, e, f)), (n, 2, 3): the result at (x, y) is the image at
    (ax + by + c, dx + ey + f), in coordinates in which -1 and 1 are the image's edges.
    """
    fill, centres = context.constants.fill, context.constants.centres
    a, b, c = affine[..., None, None].unbind(2)  # (n, 2, 1, 1): for x and for y
    grid = (a * centres + b * centres[:, None]).add_(c).permute(0, 2, 3, 1)
    # grid_sample takes pixels outside of the image as 0; after the subtraction, 0 is the fill.
    warped = functional.grid_sample(images - fill, grid, align_corners=False)
    return _to_uint8(warped.add_(fill).round_())


OPERATIONS: dict[str, Operation] = {
    function.__name__: function for function in (warp, sharpen, blend, look_up, blur, hue)
}


def _per_image(numbers: Tensor) -> Tensor:
    """Numbers, (n,), in a shape that is broadcast over images, (n, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _to_uint8(values: Tensor) -> Tensor:
    """Convert values of 0 to 255, and round them down."""
    if values.device.type == "cpu":
        values = values.to(torch.int16)  # two conversions take a quarter of the time of one there
    return values.to(torch.uint8)


def _blend(base: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    return _to_uint8(values.sub_(base).mul_(_per_image(factors)).add_(base).clamp_(0, 255))
