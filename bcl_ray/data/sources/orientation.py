"""Images turned as their EXIF orientation says, so that they are stored as people see them."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from PIL import Image

from bcl_ray.data.decode import FORMATS, decode
from bcl_ray.data.image_check import checker_settings
from bcl_ray.data.sources.base import Content, Source, SourceSplit

_ORIENTATION = 0x0112  # tag of EXIF; 1, or no tag: the image is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def with_orientation_applied(source: Source, max_pixels: int) -> Source:
    """A source whose images are upright: those that are not become PNGs, with the same pixels.

    Args:
        source: The source.
        max_pixels: Larger images are left as they are; their check says so.
    """

    def turned(split: SourceSplit) -> SourceSplit:
        return replace(split, read=lambda rows: UprightImages(split.read(rows), max_pixels))

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
                turns = orientation in _TURNS and image.format != "TIFF"
                is_small = image.width * image.height <= max_pixels
            if not turns or not is_small:
                return content
            turned = Image.fromarray(decode(content)).transpose(_TURNS[orientation])
    except Exception:  # on hostile bytes, decoders raise anything; the check of the image says why
        return content
    buffer = io.BytesIO()
    turned.save(buffer, "PNG")
    return buffer.getvalue()
