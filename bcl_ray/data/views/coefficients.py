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


def _identity(amounts: Floats) -> Tables:
    return np.broadcast_to(_RAMP, (len(amounts), 256))


def _posterize(amounts: Floats, _size: int) -> Tables:
    dropped = 0xFF >> amounts.astype(np.int16)
    return _RAMP & (0xFF - dropped).astype(np.uint8)[:, None]


def _solarize(amounts: Floats, _size: int) -> Tables:
    return np.where(np.ceil(amounts)[:, None] <= _RAMP, ~_RAMP, _RAMP)


def _solarize_add(amounts: Floats, _size: int) -> Tables:
    return np.where(_RAMP < 128, _RAMP + amounts.astype(np.uint8)[:, None], _RAMP)


def _affine(*rows: tuple[Floats | float, Floats | float, Floats | float]) -> Floats:
    """Matrices ((a, b, c), (d, e, f)), whose elements are numbers or (n,), as (n, 2, 3).

    `operations.warp` defines their meaning.
    """
    flat = np.broadcast_arrays(*(number for row in rows for number in row))
    return np.stack(flat, axis=1).astype(np.float32).reshape(-1, 2, 3)


def _rotate(amounts: Floats, _size: int) -> Floats:
    radians = np.deg2rad(amounts.astype(np.float64))  # in float64 for the same reason as above
    cos, sin = np.cos(radians).astype(np.float32), np.sin(radians).astype(np.float32)
    return _affine((cos, -sin, 0.0), (sin, cos, 0.0))


# Families in the order of their number of GPU kernels, from the fewest to the most. The comments
# say what the amount of each operation is.
FAMILIES: dict[str, dict[str, Coefficients]] = {
    "warp": {
        # Tangent of the angle; the upper left corner stays.
        "shear_x": lambda tangent, _: _affine((1.0, tangent, tangent), (0.0, 1.0, 0.0)),
        "shear_y": lambda tangent, _: _affine((1.0, 0.0, 0.0), (tangent, 1.0, tangent)),
        # Share of the image's side, to the right or downwards.
        "translate_x": lambda share, _: _affine((1.0, 0.0, -2 * share), (0.0, 1.0, 0.0)),
        "translate_y": lambda share, _: _affine((1.0, 0.0, 0.0), (0.0, 1.0, -2 * share)),
        "rotate": _rotate,  # degrees, counter-clockwise
    },
    # Factor: below 1 towards a 3 x 3 smoothing, above 1 away.
    "sharpen": {"sharpness": lambda factor, _: factor},
    "blend": {
        "brightness": lambda factor, _: factor,  # below 1 towards black, above 1 away
        "contrast": lambda factor, _: factor,  # the same, with the image's mean luma
        "saturation": lambda factor, _: factor,  # the same, with each pixel's luma
        "grayscale": lambda amounts, _: np.zeros_like(amounts),  # none: all channels become luma
    },
    "look_up": {
        "invert": lambda amounts, _: ~_identity(amounts),  # none: the negative image
        "posterize": _posterize,  # bits that remain, a whole number from 0 to 8
        "solarize": _solarize,  # values from this threshold (0 to 256) on are inverted
        "solarize_add": _solarize_add,  # added to values below 128, a whole number from 0 to 128
        "autocontrast": lambda amounts, _: _identity(amounts),  # none: computed from the image
        "equalize": lambda amounts, _: _identity(amounts),  # the same
    },
    "blur": {"gaussian_blur": _gaussian},  # standard deviation in pixels, above 0
    "hue": {"hue": lambda share, _: 6 * share},  # rotation by a share of the circle, -0.5 to 0.5
}
NAMES = tuple(name for operations in FAMILIES.values() for name in operations)
COEFFICIENTS = {name: made for table in FAMILIES.values() for name, made in table.items()}
FAMILY = {name: family for family, operations in FAMILIES.items() for name in operations}
