"""Images turned as their EXIF orientation says, so that they are stored as people see them."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from bcl_ray.data.decode import FORMATS, Pixels, decode
from bcl_ray.data.image_check import checker_settings
from bcl_ray.data.sources.base import Content, Rows, Source, SourceSplit

_ORIENTATION = 0x0112  # tag of EXIF; 1, or no tag: the image is upright


def with_orientation_applied(source: Source, max_pixels: int) -> Source:
    """A source whose images are upright: those that are not become PNGs, with the same pixels.

    Args:
        source: The source.
        max_pixels: Larger images are left as they are; their check says so.
    """

    def turned(split: SourceSplit) -> SourceSplit:
        def read(rows: Rows) -> UprightImages:
            return UprightImages(split.read(rows), max_pixels)

        return replace(split, read=read)

    splits = {name: turned(split) for name, split in source.splits.items()}
    return replace(source, name=f"{source.name}, EXIF orientation applied", splits=splits)


@dataclass(frozen=True)
class UprightImages:
    """Images of a source; iterating turns them."""

    images: Iterable[Content]
    max_pixels: int

    def __iter__(self) -> Iterator[Content]:
        for content in self.images:
            yield content if isinstance(content, OSError) else upright(content, self.max_pixels)


def upright(content: bytes, max_pixels: int) -> bytes:
    """The bytes of an image, or of a PNG with its pixels turned if its EXIF orientation is not 1.

    What cannot be decoded is returned as it is.
    """
    try:
        with checker_settings():
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                orientation = image.getexif().get(_ORIENTATION, 1)
                # Decoders of TIFF turn it themselves: there, orientation is part of the format.
                turns = orientation in range(2, 9) and image.format != "TIFF"
                is_small = image.width * image.height <= max_pixels
            if not turns or not is_small:
                return content
            pixels = _turned(decode(content), orientation)
    except Exception:  # on hostile bytes, decoders raise anything; the check of the image says why
        return content
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels whose first row and column are those that an EXIF orientation, 2 to 8, names."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    vertical = orientation in (3, 4, 7, 8)
    horizontal = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1])
