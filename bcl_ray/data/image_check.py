"""Checking encoded images: can they be used, and are their pixels those that Pillow would give?"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from PIL import Image

from bcl_ray.data.decode import decode
from bcl_ray.machine.errors import UserError

# What both Pillow and OpenCV read; for some of its other formats, Pillow starts external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Pillow's names of the modes that OpenCV decodes to the same pixels; not among them: gray of
# 16 bits, floats, LAB.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@contextmanager
def checker_settings() -> Iterator[None]:
    """Settings of Pillow and OpenCV for checks: no pixel limit of Pillow's, and no log of OpenCV's.

    A check has its own limit of pixels, and reports what OpenCV would log. The settings apply to
    the whole process, so the previous ones are restored.
    """
    log = getattr(cv2.utils, "logging", cv2)  # in OpenCV 5 and later, and in earlier versions
    limit, level = Image.MAX_IMAGE_PIXELS, log.getLogLevel()
    Image.MAX_IMAGE_PIXELS = None
    log.setLogLevel(0)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
        log.setLogLevel(level)


def image_fault(content: bytes, max_pixels: int) -> str | None:
    """Why an image cannot be used, or None; to be called within `checker_settings`.

    Pillow reads the header, which is cheap, and names the mode. Then the image is decoded as for
    training, because a truncated file may have a valid header.
    """
    try:
        image_size(content, max_pixels)
        decode(content)
    except ValueError as error:
        return str(error)
    return None


def image_size(
    content: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS
) -> tuple[int, int]:
    """Width and height by an image's header; to be called within `checker_settings`.

    Raises:
        ValueError: The header cannot be read, the image has more than `max_pixels` pixels, or
            OpenCV would decode it to other pixels than Pillow.
    """
    if not content:
        raise UserError("the image is empty")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            (width, height), mode = image.size, image.mode
    except Exception as error:  # on hostile bytes, decoders raise anything
        reason = re.sub(r"<_io.BytesIO.*?>", "its bytes", " ".join(str(error).split()))
        raise UserError(f"does not decode: {reason or type(error).__name__}") from None
    if width * height > max_pixels:
        raise UserError(f"{width} x {height} pixels are more than max_pixels ({max_pixels:,})")
    if mode not in MODES:
        raise UserError(f"its mode {mode} is none of {', '.join(MODES)}: convert it to RGB")
    return width, height
