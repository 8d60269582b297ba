"""The one decoder of images, for the check while shards are written and for every view.

Images are decoded by OpenCV. For JPEG, PNG, GIF, WebP, BMP and TIFF of 8 bits, the pixels are those
of Pillow's `convert("RGB")`, in 50 to 80 % of the time (`python -m benchmarks.views`). As in the
conventional training pipeline, gray values are repeated over the channels, alpha is dropped, and
the EXIF orientation is ignored.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray.machine.errors import UserError

Pixels = NDArray[np.uint8]

_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(image: bytes) -> Pixels:
    """Decode the bytes of an image file to RGB pixels, (H, W, 3).

    Raises:
        ValueError: The bytes are no image, or only a part of one.
    """
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(image, np.uint8), _FLAGS)
    except cv2.error:  # no bytes, or more pixels than OpenCV's own limit
        pixels = None
    if pixels is None:
        raise UserError(f"does not decode ({len(image)} bytes, starting with {image[:4]!r})")
    return pixels
