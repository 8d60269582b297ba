"""Coefficients of the operations on images, computed on the host from their amounts.

Operations belong to families. Those of a family run together on the device, as one operation whose
coefficients differ from image to image (`operations`).

Axes: n images, S = views.image_size.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Tables = NDArray[np.uint8]
Coefficients = Callable[[Floats, int], NDArray[Any]]
"""Computes coefficients, (n, ...), from amounts, (n,), and S."""

_RAMP = np.arange(256, dtype=np.uint8)


def _amounts(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return amounts


def _zeros(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return np.zeros_like(amounts)


def _sextants(amounts: Floats, size: int) -> Floats:  # noqa: ARG001
    return 6 * amounts


def blur_radius(size: int) -> int:
    """Radius of the blur's kernel for an image of S x S pixels, in pixels.

    The kernel is a tenth as wide as the image, odd and at least 3 (SimCLR, appendix A).
    """
    return max(3, size // 10 | 1) // 2


def _gaussian(amounts: Floats, size: int) -> Floats:
    """Weights of a Gaussian kernel at distances 0 to its radius, (n, 1 + radius)."""
    # In float64: implementations of exp differ in the last bits, which float32 does not keep.
    distances = np.arange(blur_radius(size) + 1) / amounts.astype(np.float64)[:, None]
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
    """Matrices ((a, b, c), (d, e, f)), whose elements are numbers or (n,), as (n, 2, 3).

    `operations.warp` defines their meaning.
    """
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
    radians = np.deg2rad(amounts.astype(np.float64))  # in float64 for the same reason as above
    cos, sin = np.cos(radians).astype(np.float32), np.sin(radians).astype(np.float32)
    return _affine((cos, -sin, 0.0), (sin, cos, 0.0))


# Families in the order of their number of GPU kernels, from the fewest to the most. The comments
# say what the amount of each operation is.
FAMILIES: dict[str, dict[str, Coefficients]] = {
    "warp": {
        "shear_x": _shear_x,  # tangent of the angle; the upper left corner stays
        "shear_y": _shear_y,
        "translate_x": _translate_x,  # share of the image's side, to the right
        "translate_y": _translate_y,  # the same, downwards
        "rotate": _rotate,  # degrees, counter-clockwise
    },
    "sharpen": {"sharpness": _amounts},  # factor: below 1 towards a 3 x 3 smoothing, above 1 away
    "blend": {
        "brightness": _amounts,  # factor: below 1 towards black, above 1 away
        "contrast": _amounts,  # the same, with the image's mean luma
        "saturation": _amounts,  # the same, with each pixel's luma
        "grayscale": _zeros,  # no amount: all channels become luma
    },
    "look_up": {
        "invert": _invert,  # no amount: the negative image
        "posterize": _posterize,  # bits that remain, a whole number from 0 to 8
        "solarize": _solarize,  # values from this threshold (0 to 256) on are inverted
        "solarize_add": _solarize_add,  # added to values below 128, a whole number from 0 to 128
        "autocontrast": _identity,  # no amount: the table is computed from the image
        "equalize": _identity,  # the same
    },
    "blur": {"gaussian_blur": _gaussian},  # standard deviation in pixels, above 0
    "hue": {"hue": _sextants},  # rotation, as a share of the hue circle, -0.5 to 0.5
}
NAMES = tuple(name for operations in FAMILIES.values() for name in operations)
COEFFICIENTS = {name: made for table in FAMILIES.values() for name, made in table.items()}
FAMILY = {name: family for family, operations in FAMILIES.items() for name in operations}
