"""Checking encoded images: can they be used, and are their pixels those that Pillow would give?"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from PIL import Image, UnidentifiedImageError

from bcl_ray.data.decode import FORMATS, decode, is_for_opencv
from bcl_ray.machine.errors import UserError, flat_text

# Pillow's names of the modes that have a conventional meaning as RGB of 8 bits; not among them:
# gray of 16 bits, floats, LAB, gray with premultiplied alpha.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
PILLOW_PIXELS = 178_956_970  # Pillow refuses more, unless the limit is lifted for the whole process

# What files begin with that people take for images, or that have an image's name.
_OTHER_KINDS = {
    rb"....ftyp(hei|hev|mif1|msf1)": "HEIC",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"\0\0[\x01\x02]\0": "an icon",
    rb"8BPS": "a Photoshop file",
    rb"%PDF": "PDF",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript",
    rb"\s*<(\?xml|svg)": "SVG or other XML",
    rb"(?i)\s*<(!doctype )?html": "a web page",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc|Rar!": "an archive",
    rb"version https://git-lfs": "a Git LFS pointer without its image",
}


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
        checked_size(content, max_pixels)
        decode(content)
    except ValueError as error:
        return str(error)
    return None


def checked_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height by an image's header; to be called within `checker_settings`.

    Raises:
        ValueError: The header cannot be read, the image has more than `max_pixels` pixels, or its
            pixels are not colours of 8 bits.
    """
    if not content:
        raise UserError("the image is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            (width, height), mode = image.size, image.mode
    except UnidentifiedImageError:
        raise UserError(_unknown(content)) from None
    except Exception as error:  # on hostile bytes, decoders raise anything
        raise UserError(f"does not decode: {flat_text(error) or type(error).__name__}") from None
    if width * height > max_pixels:
        raise UserError(f"{width} x {height} pixels are more than max_pixels ({max_pixels:,})")
    if width * height > PILLOW_PIXELS and not is_for_opencv(content):
        raise UserError(
            f"{width} x {height} pixels are more than Pillow decodes ({PILLOW_PIXELS:,}): convert "
            "it to JPEG or PNG"
        )
    if mode not in MODES:
        raise UserError(f"its mode {mode} is none of {', '.join(MODES)}: convert it to RGB")
    return width, height


def _unknown(content: bytes) -> str:
    for start, kind in _OTHER_KINDS.items():
        if re.match(start, content, re.DOTALL):
            return f"it is {kind}, and only {', '.join(FORMATS)} are decoded"
    return (
        f"it is none of {', '.join(FORMATS)}, or its header is damaged ({len(content)} bytes, "
        f"starting with {content[:4]!r})"
    )
