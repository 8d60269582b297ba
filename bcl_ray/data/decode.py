"""The one decoder of images, for the check while shards are written and for every view.

The pixels are those of Pillow's `convert("RGB")`: gray values are repeated over the channels, alpha
is dropped, of an animation the first frame is taken. As in the conventional training pipeline, the
EXIF orientation is ignored; that of a TIFF is a part of the format, and Pillow applies it.

JPEG, PNG and WebP are decoded by OpenCV, in 50 to 80 % of Pillow's time (`python -m
benchmarks.views`) and to the same pixels; only those of JPEG in CMYK may differ by 1. All else is
left to Pillow: OpenCV darkens a TIFF with alpha, composites transparent GIF and AVIF, and of an
animated PNG it takes the first frame where Pillow takes the default image.
"""

import io
import re

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bcl_ray.machine.errors import UserError

Pixels = NDArray[np.uint8]

# Pillow's names. For some of its other formats, Pillow starts external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_OPENCV_STARTS = re.compile(rb"\xff\xd8\xff|RIFF....WEBP|" + re.escape(_PNG), re.DOTALL)
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(image: bytes) -> Pixels:
    """Decode the bytes of an image file to RGB pixels, (H, W, 3).

    Raises:
        ValueError: The bytes are no image, or only a part of one.
    """
    pixels = _by_opencv(image) if is_for_opencv(image) else _by_pillow(image)
    if pixels is None:
        raise UserError(f"does not decode ({len(image)} bytes, starting with {image[:4]!r})")
    return pixels


def is_for_opencv(image: bytes) -> bool:
    """Whether OpenCV decodes a file, and not Pillow."""
    if not _OPENCV_STARTS.match(image):
        return False
    is_animated = image.startswith(_PNG) and b"acTL" in image[: image.find(b"IDAT")]
    return not is_animated


def _by_opencv(image: bytes) -> Pixels | None:
    try:
        pixels: Pixels | None = cv2.imdecode(np.frombuffer(image, np.uint8), _FLAGS)
    except cv2.error:  # no bytes, or more pixels than OpenCV's own limit
        return None
    return pixels


def _by_pillow(image: bytes) -> Pixels | None:
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            opened.info.pop("transparency", None)  # of palettes: Pillow would warn of it
            return np.asarray(opened.convert("RGB"))
    except Exception:  # on hostile bytes, decoders raise anything
        return None
