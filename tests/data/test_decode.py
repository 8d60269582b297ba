import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bcl_ray.data.decode import FORMATS, decode
from bcl_ray.data.image_check import PILLOW_PIXELS, checked_size, checker_settings, image_fault

ROWS, COLUMNS = np.mgrid[:24, :32]
COLOURS = np.stack([8 * COLUMNS, 10 * ROWS, 255 - 4 * COLUMNS], axis=-1).astype(np.uint8)
ALPHA = (60 + 3 * (ROWS + COLUMNS)).astype(np.uint8)


def picture(mode):
    image = Image.fromarray(COLOURS)
    if mode == "PA":  # Pillow makes none from RGB
        return image.convert("P").convert("PA")
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(ALPHA))
    return image.convert(mode)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillows(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def fault(content, max_pixels=10_000):
    with checker_settings():
        return image_fault(content, max_pixels)


def tiff(samples, extra, order):
    """An uncompressed TIFF of samples (H, W, C), with the kinds of those after red, green, blue."""
    height, width, channels = samples.shape
    bits = 8 * samples.dtype.itemsize
    end = 8 + 2 * channels  # of the bits of each sample, which lie before the pixels
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, end),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, samples.nbytes),
        *([(338, 3, 1, extra)] if extra is not None else []),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", end + samples.nbytes)
    body = struct.pack(f"{order}{channels}H", *[bits] * channels)
    body += samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    table = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        table += struct.pack(order + ("HHIHxx" if short else "HHII"), tag, kind, count, value)
    return head + body + table + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "extra", [None, 0, 1, 2], ids=["unnamed", "unspecified", "premultiplied", "alpha"]
)
def test_a_tiff_with_alpha_has_the_colours_of_the_same_picture_as_png(extra, bits, order):
    scale = 2**bits - 1
    colours, alpha = COLOURS / 255, ALPHA[..., None] / 255
    stored = colours * alpha if extra == 1 else colours
    samples = np.rint(np.concatenate([stored, alpha], axis=-1) * scale)
    content = tiff(samples.astype(f"u{bits // 8}"), extra, order)
    assert fault(content) is None
    # Colours that were premultiplied in 8 bits are known to 1/2 / alpha.
    most = 255 / ALPHA.min() if extra == 1 else 0
    assert np.abs(decode(content).astype(int) - COLOURS).max() <= most


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"])
def test_a_tiff_of_any_compression_has_the_pixels_of_its_picture(mode, compression):
    content = encoded(picture(mode), "TIFF", compression=compression)
    assert fault(content) is None
    assert (decode(content) == np.asarray(picture(mode).convert("RGB"))).all()


def every_kind():
    """Files of each format, mode and variant that Pillow writes."""
    variants = [(kind, {}) for kind in FORMATS]
    variants += [("TIFF", {"compression": name}) for name in ("jpeg", "zstd", "lzma", "group4")]
    variants += [("TIFF", {"tiffinfo": {274: 6}}), ("TIFF", {"big_tiff": True})]
    variants += [("GIF", {"transparency": 5}), ("GIF", {"interlace": 1})]
    variants += [("JPEG2000", {"irreversible": True}), ("WEBP", {"lossless": True})]
    modes = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
    for (kind, options), mode in itertools.product(variants, modes):
        try:
            yield kind, mode, encoded(picture(mode), kind, **options)
        except (OSError, RuntimeError, ValueError):  # this format has no such mode
            continue


def test_what_passes_the_check_has_pillows_pixels_in_every_format_and_mode():
    used = {}
    for kind, mode, content in every_kind():
        reason = fault(content)
        if reason is None:
            # Four inks are mixed by OpenCV, with other rounding.
            most = (kind, mode) == ("JPEG", "CMYK")
            assert np.abs(decode(content).astype(int) - pillows(content)).max() <= most, (
                kind,
                mode,
            )
            used[kind] = used.get(kind, 0) + 1
        else:
            assert "its mode" in reason, (kind, mode, reason)
    assert set(used) == set(FORMATS)
    assert sum(used.values()) > 90


@pytest.mark.parametrize("options", [{}, {"default_image": True}], ids=["frames", "default image"])
def test_of_an_animation_the_picture_is_taken_that_pillow_shows(options):
    frames = [Image.fromarray(np.roll(COLOURS, 40 * n)) for n in range(3)]
    for kind in ("PNG", "WEBP", "GIF", "AVIF", "TIFF"):
        only_png = options if kind == "PNG" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **only_png)
        assert fault(content) is None
        assert (decode(content) == pillows(content)).all(), kind


def test_a_text_in_a_png_does_not_make_it_an_animation():
    content = encoded(picture("RGB"), "PNG")
    text = b"tEXtacTL\0no"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    assert (decode(content[:33] + chunk + content[33:]) == COLOURS).all()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (encoded(picture("RGB"), "ICO"), "an icon"),
        (b"8BPS\0\1", "a Photoshop file"),
        (encoded(picture("RGB"), "PDF"), "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG or other XML"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
        (b"PK\3\4", "an archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer without its image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_for_training_is_refused_by_name(content, kind):
    assert fault(content) == f"it is {kind}, and only {', '.join(FORMATS)} are decoded"


@pytest.mark.parametrize("content", [b"hello", b"II*\0\1\0", b"GIF89a", bytes(40)])
def test_bytes_that_nothing_identifies_are_shown(content):
    assert fault(content).endswith(
        f"header is damaged ({len(content)} bytes, starting with {content[:4]!r})"
    )


def test_pillow_gets_no_image_beyond_its_own_limit():
    """Lifting the limit would concern the whole process."""
    side = 14_000
    assert side**2 > PILLOW_PIXELS
    with checker_settings(), pytest.raises(ValueError, match="more than Pillow decodes"):
        checked_size(b"P5 %d %d 255\n" % (side, side), 10**9)
    assert Image.MAX_IMAGE_PIXELS * 2 == PILLOW_PIXELS
