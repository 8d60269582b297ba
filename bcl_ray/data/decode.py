"""Encoded images to pixels: the one decoder, for the check at sharding and for every view.

Decoding is OpenCV's: for JPEG, PNG, GIF, WebP, BMP and TIFF of 8 bits it gives Pillow's
`convert("RGB")`, pixel for pixel, in 50 to 80 % of the time (`python -m benchmarks.views`):
grayscale is repeated over the channels, alpha is dropped, EXIF orientation is not applied. All as
in the conventional training pipeline.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray.machine.errors import UserError

Pixels = NDArray[np.uint8]

_HOW = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(image: bytes) -> Pixels:
    """Decode a whole file to (H, W, 3), RGB.

    Raises:
        ValueError: bytes that are no image, or only a part of one.
    """
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(image, np.uint8), _HOW)
    except cv2.error:  # an empty file, or one beyond OpenCV's own pixel limit
        pixels = None
    if pixels is None:
        raise UserError(f"does not decode ({len(image)} bytes, starting with {image[:4]!r})")
    return pixels
