"""What each operation on images needs beside them, made of its amounts on the host: numpy.

Operations stand in families: those of a family run together on the device, as one operation whose
coefficients differ from image to image (`operations`). Axes: n images, S = views.image_size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Tables = NDArray[np.uint8]
Coefficients = Callable[[Floats, int], NDArray[Any]]
"""Of amounts, (n,), and S: (n, ...)."""

_RAMP = np.arange(256, dtype=np.uint8)


def _same(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return amounts


def _nothing(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return np.zeros_like(amounts)


def _sextants(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return 6 * amounts


def reach(size: int) -> int:
    """Neighbours on each side that a blur of an image of S x S pixels mixes in.

    The kernel is a tenth as wide as the image, odd and at least 3 (SimCLR, appendix A).
    """
    return max(3, size // 10 | 1) // 2


def _smoothing(amounts: Floats, size: int) -> Floats:
    """A Gaussian's weights at distances 0 to reach, (n, 1 + reach)."""
    # In double, so that float32 sees no difference between exponentials.
    distances = np.arange(reach(size) + 1) / amounts.astype(np.float64)[:, None]
    weights = np.exp(-0.5 * np.square(distances))
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    return weights.astype(np.float32)


def _identity(amounts: Floats, size: int) -> Tables:  # noqa: ARG001
    return np.broadcast_to(_RAMP, (len(amounts), 256))


def _invert(amounts: Floats, size: int) -> Tables:
    return ~_identity(amounts, size)


def _posterize(amounts: Floats, size: int) -> Tables:  # noqa: ARG001
    dropped = 0xFF >> amounts.astype(np.int16)
    return _RAMP & (0xFF - dropped).astype(np.uint8)[:, None]


def _solarize(amounts: Floats, size: int) -> Tables:  # noqa: ARG001
    return np.where(np.ceil(amounts)[:, None] <= _RAMP, ~_RAMP, _RAMP)


def _solarize_add(amounts: Floats, size: int) -> Tables:  # noqa: ARG001
    return np.where(_RAMP < 128, _RAMP + amounts.astype(np.uint8)[:, None], _RAMP)


def _affine(*rows: tuple[Floats | float, Floats | float, Floats | float]) -> Floats:
    """((a, b, c), (d, e, f)), numbers or (n,), to (n, 2, 3): see `operations.warp`."""
    flat = np.broadcast_arrays(*(number for row in rows for number in row))
    return np.stack(flat, axis=1).astype(np.float32).reshape(-1, 2, 3)


def _shear_x(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return _affine((1.0, amounts, amounts), (0.0, 1.0, 0.0))


def _shear_y(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return _affine((1.0, 0.0, 0.0), (amounts, 1.0, amounts))


def _translate_x(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return _affine((1.0, 0.0, -2 * amounts), (0.0, 1.0, 0.0))


def _translate_y(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return _affine((1.0, 0.0, 0.0), (0.0, 1.0, -2 * amounts))


def _rotate(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    radians = np.deg2rad(amounts.astype(np.float64))  # so that float32 sees no difference in sines
    cos, sin = np.cos(radians).astype(np.float32), np.sin(radians).astype(np.float32)
    return _affine((cos, -sin, 0.0), (sin, cos, 0.0))


# From the family that launches the fewest kernels to the one that launches the most. Amounts are:
FAMILIES: dict[str, dict[str, Coefficients]] = {
    "warp": {
        "shear_x": _shear_x,  # tangent of the angle, about the upper left corner
        "shear_y": _shear_y,
        "translate_x": _translate_x,  # share of the side, to the right
        "translate_y": _translate_y,  # downwards
        "rotate": _rotate,  # degrees, counter-clockwise
    },
    "sharpen": {"sharpness": _same},  # factor towards (< 1) or away from a 3 x 3 smoothing
    "blend": {
        "brightness": _same,  # factor towards (< 1) or away from black
        "contrast": _same,  # from the image's mean luma
        "saturation": _same,  # from each pixel's luma
        "grayscale": _nothing,  # no amount: luma in all channels
    },
    "look_up": {
        "invert": _invert,  # no amount: negative
        "posterize": _posterize,  # whole bits that are kept, 0 to 8
        "solarize": _solarize,  # threshold, 0 to 256, from which on values are inverted
        "solarize_add": _solarize_add,  # whole number, 0 to 128, added to values below 128
        "autocontrast": _identity,  # no amount: the image says what the table is
        "equalize": _identity,
    },
    "blur": {"gaussian_blur": _smoothing},  # standard deviation in pixels, above 0
    "hue": {"hue": _sextants},  # turn of the hue circle, -0.5 to 0.5
}
NAMES = tuple(name for kinds in FAMILIES.values() for name in kinds)
COEFFICIENTS = {name: made for kinds in FAMILIES.values() for name, made in kinds.items()}
FAMILY = {name: family for family, kinds in FAMILIES.items() for name in kinds}
