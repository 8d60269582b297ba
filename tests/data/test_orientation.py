import io

import numpy as np
import pytest
from PIL import Image, ImageOps

import bcl_ray
from bcl_ray.data.decode import decode
from bcl_ray.data.shards import read_manifest
from bcl_ray.data.sources.orientation import upright
from tests.data.test_shards import read_split
from tests.data.test_sources import write_tree

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def encoded(kind: str, orientation: int, pixels=PIXELS) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_pillow_does(kind, orientation):
    content = encoded(kind, orientation)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert decode(upright(content, 16 * 24)).tolist() == np.asarray(turned).tolist()


@pytest.mark.parametrize(
    "content",
    [
        encoded("JPEG", 1),
        encoded("PNG", 77),
        encoded("JPEG", 6)[:300],
        encoded("JPEG", 6, np.zeros((17, 24, 3), np.uint8)),
        b"",
        b"Exif",
    ],
    ids=["upright", "no orientation", "cut", "too large", "empty", "no image"],
)
def test_what_is_upright_or_cannot_be_turned_stays_as_it_is(content):
    assert upright(content, 16 * 24) is content


def test_orientation_is_ignored_unless_it_is_to_be_applied(tmp_path):
    files = {
        f"{split}/c/{o}.jpg": encoded("JPEG", o) for split in ("train", "test") for o in (1, 6)
    }
    root = write_tree(tmp_path / "photos", files | {"train/c/broken.jpg": b"oops"})
    sizes = {}
    for orientation in ("ignore", "apply"):
        target = str(tmp_path / orientation)
        bcl_ray.shard(
            "folder", target, path=root, orientation=orientation, on_bad_image="skip", cpus=1
        )
        split = read_manifest(target).splits["train"]
        images = read_split(target, split).sort_by("id")["image"].to_pylist()
        sizes[orientation] = [decode(image).shape[:2] for image in images]
        assert split.quarantined == 1
    assert sizes == {"ignore": [(16, 24), (16, 24)], "apply": [(16, 24), (24, 16)]}
    assert read_manifest(str(tmp_path / "ignore")).source == "folder"
    assert read_manifest(str(tmp_path / "apply")).source == "folder, EXIF orientation applied"
    with pytest.raises(ValueError, match="orientation 'up' must be ignore or apply"):
        bcl_ray.shard("folder", str(tmp_path / "x"), path=root, orientation="up")
