"""Operations on batches of 8-bit images, with one strength per image.

Each takes images (n, 3, H, W) uint8, H = W, and amounts (n,) float32 on the same device, and gives
new images; the amount and its unit are in the operation's description. They follow Pillow, as
published recipes used it: luma in fixed point, blends cut to whole numbers after each operation.

An image's result does not depend on the batch around it. Sums are therefore sums of whole
numbers, exact in any order, and no step multiplies and adds at once: where that is fused, it
rounds once instead of twice, and vector code and its scalar remainder differ in it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Operation = Callable[[Tensor, Tensor], Tensor]
Coefficients = tuple[Tensor | float, ...]


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """Factor towards (< 1) or away from black."""
    return _bytes(images * _each(amounts))


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Factor towards or away from the image's mean luma."""
    mean = _luma(images).double().mean(dim=(2, 3), keepdim=True)
    return _blend((mean + 0.5).floor_().float(), images, amounts)


def saturation(images: Tensor, amounts: Tensor) -> Tensor:
    """Factor towards or away from each pixel's luma."""
    return _blend(_luma(images), images, amounts)


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """Factor towards or away from a 3 x 3 smoothing; border pixels are their own smoothing."""
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    sums += 4 * wide[:, :, 1:-1, 1:-1]  # the centre weighs 5 of 13
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (sums.float() / 13).round_()
    return _blend(smooth, images, amounts)


def gaussian_blur(images: Tensor, amounts: Tensor) -> Tensor:
    """Standard deviation, above 0, in pixels; the border is mirrored, as torchvision does it.

    The kernel is a tenth as wide as the image, odd and at least 3 (SimCLR, appendix A).
    """
    reach = max(3, images.shape[-1] // 10 | 1) // 2
    offsets = torch.arange(reach + 1, device=images.device)
    # In double, so that float32 sees no difference between exponentials.
    weights = (-0.5 * (offsets / amounts.double()[:, None]).square()).exp()  # (n, 1 + reach)
    weights /= 2 * weights.sum(1, keepdim=True) - 1
    smooth = functional.pad(images.float(), (reach,) * 4, mode="reflect")
    for axis in (2, 3):
        smooth = _symmetric_sum(smooth, weights.float(), axis)
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


def hue(images: Tensor, amounts: Tensor) -> Tensor:
    """Turn of the hue circle, -0.5 to 0.5, in the hexcone model of HSV."""
    red, green, blue = images.float().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    safe = chroma.clamp(min=1)  # gray pixels have no hue; any will do
    # 1 where red, or green, is not the largest: products select, where torch.where would take
    # twenty times as long on a CPU.
    no_red, no_green = (value - red).clamp_(max=1), (value - green).clamp_(max=1)
    below_green = ((red - green) / safe).add_(4).mul_(no_green)
    below_green += ((blue - red) / safe).add_(2).mul_(1 - no_green)
    sextant = below_green.mul_(no_red).add_(((green - blue) / safe).mul_(1 - no_red))
    sextant += 6 * amounts[:, None, None]
    sextant -= (sextant / 6).floor_().mul_(6)  # remainder_ takes five times as long
    shares = (
        (sextant - 3).abs_().sub_(1),  # how red the turned hue is, before it is cut to 0 to 1
        2 - (sextant - 2).abs_(),
        2 - (sextant - 4).abs_(),
    )
    planes = [share.clamp_(0, 1).mul_(chroma).add_(least).round_() for share in shares]
    return torch.stack([_bytes(plane) for plane in planes], dim=1)


def grayscale(images: Tensor, amounts: Tensor) -> Tensor:  # noqa: ARG001
    """Luma in all three channels; the amount is ignored."""
    return _bytes(_luma(images)).expand_as(images)


def invert(images: Tensor, amounts: Tensor) -> Tensor:  # noqa: ARG001
    """Negative; the amount is ignored."""
    return ~images


def posterize(images: Tensor, amounts: Tensor) -> Tensor:
    """Whole bits that are kept, 0 to 8."""
    dropped = 0xFF >> amounts.to(torch.int16)
    return images & _each(0xFF - dropped).to(torch.uint8)


def solarize(images: Tensor, amounts: Tensor) -> Tensor:
    """Threshold, 0 to 256, from which on values are inverted."""
    bright = images >= _each(amounts.ceil().to(torch.int16))
    return images ^ bright.to(torch.uint8).neg_()  # 255 - value; torch.where takes 7 times as long


def solarize_add(images: Tensor, amounts: Tensor) -> Tensor:
    """Whole number, 0 to 128, added to values below 128."""
    dark = images < 128
    return images + dark.to(torch.uint8).mul_(_each(amounts).to(torch.uint8))


def autocontrast(images: Tensor, amounts: Tensor) -> Tensor:  # noqa: ARG001
    """Stretch each channel to 0 and 255; a flat channel stays. The amount is ignored."""
    least, most = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = most == least
    least = least.masked_fill(flat, 0)
    span = (most - least).masked_fill(flat, 255)
    return _bytes((images - least).float().mul_(255).div_(span))


def equalize(images: Tensor, amounts: Tensor) -> Tensor:  # noqa: ARG001
    """Even out each channel's histogram, by Pillow's rule. The amount is ignored."""
    values = images.flatten(2).to(torch.int64)  # (n, 3, P)
    histogram = values.new_zeros(*values.shape[:2], 256)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    brightest = histogram.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = histogram.cumsum(2) - histogram  # pixels that are darker
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.to(torch.uint8).gather(2, values).view_as(images)


def _each(amounts: Tensor) -> Tensor:
    return amounts[:, None, None, None]


def _bytes(values: Tensor) -> Tensor:
    """Cut to 0 to 255 and to whole numbers; in two steps, which take a quarter of one's time."""
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601-2 in Pillow's 16-bit fixed point, (n, 1, H, W); below 2**24, so exact in float."""
    red, green, blue = images.float().unbind(1)
    scaled = red.mul_(19595).add_(green.mul_(38470)).add_(blue.mul_(7471))
    return scaled.add_(32768).mul_(2.0**-16).floor_()[:, None]


def _blend(base: Tensor, images: Tensor, amounts: Tensor) -> Tensor:
    """At amount 0 the base, at 1 the images; other amounts on the line through both."""
    return _bytes(images.float().sub_(base).mul_(_each(amounts)).add_(base))


def _shear_x(amounts: Tensor) -> Coefficients:
    return 1.0, amounts, amounts, 0.0, 1.0, 0.0


def _shear_y(amounts: Tensor) -> Coefficients:
    return 1.0, 0.0, 0.0, amounts, 1.0, amounts


def _translate_x(amounts: Tensor) -> Coefficients:
    return 1.0, 0.0, -2 * amounts, 0.0, 1.0, 0.0


def _translate_y(amounts: Tensor) -> Coefficients:
    return 1.0, 0.0, 0.0, 0.0, 1.0, -2 * amounts


def _rotate(amounts: Tensor) -> Coefficients:
    radians = amounts.double().deg2rad()  # so that float32 sees no difference between sines
    cos, sin = radians.cos().float(), radians.sin().float()
    return cos, -sin, 0.0, sin, cos, 0.0


def warp(images: Tensor, coefficients: Coefficients, fill: Tensor) -> Tensor:
    """Bilinear affine warp about the centre; what comes from outside is fill, (3,), 0 to 255.

    Coefficients (a, b, c, d, e, f), numbers or (n,): the result at (x, y) is the image at
    (ax + by + c, dx + ey + f), where -1 and 1 are the image's edges.
    """
    size = images.shape[-1]
    x = (2 * torch.arange(size, device=images.device) + 1) / size - 1  # pixel centres
    a, b, c, d, e, f = (k[:, None, None] if isinstance(k, Tensor) else k for k in coefficients)
    grid = images.new_empty((len(images), size, size, 2), dtype=torch.float32)
    grid[..., 0] = a * x + b * x[:, None] + c
    grid[..., 1] = d * x + e * x[:, None] + f
    # Outside is zero to grid_sample; with the fill subtracted, zero is the fill.
    fill = fill[:, None, None]
    warped = functional.grid_sample(images - fill, grid, align_corners=False)
    return _bytes(warped.add_(fill).round_())


GEOMETRY: dict[str, Callable[[Tensor], Coefficients]] = {
    "shear_x": _shear_x,  # tangent of the angle, about the upper left corner
    "shear_y": _shear_y,
    "translate_x": _translate_x,  # share of the side, to the right
    "translate_y": _translate_y,  # downwards
    "rotate": _rotate,  # degrees, counter-clockwise
}
COLOUR: dict[str, Operation] = {
    function.__name__: function
    for function in (
        *(brightness, contrast, saturation, sharpness, gaussian_blur, hue, grayscale, invert),
        *(posterize, solarize, solarize_add, autocontrast, equalize),
    )
}
