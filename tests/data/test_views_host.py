import io
import math
import subprocess
import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from bcl_ray.data.decode import decode
from bcl_ray.data.keyed import Stream, uniforms
from bcl_ray.data.views import crops, eval_views, host, train_views
from bcl_ray.experiment.options import ViewConfig, ViewsConfig

WHOLE = ViewConfig(crop="resized", scale=(1, 1), ratio=(1, 1), flip=0)


def config(kind=WHOLE, other=None, size=32, eval_resize=None):
    return ViewsConfig(
        image_size=size,
        classification=kind,
        contrastive=other or kind,
        eval_resize=eval_resize or size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def picture(height, width, seed=0):
    """Colour detail of the size of a few pixels, as photographs have it."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def encoded(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def views_of(images, views, ids=None, *, num_contrastive=2, seed=0, epoch=0):
    ids = np.arange(len(images)) if ids is None else np.asarray(ids)
    return train_views(images, ids, views, num_contrastive=num_contrastive, seed=seed, epoch=epoch)


# Decoding


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_is_pillows_pixel_for_pixel(kind, mode):
    data = encoded(Image.fromarray(picture(45, 60)).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (decode(data) == expected).all()


@pytest.mark.parametrize("mode", ["P", "1", "RGBA", "LA"])
def test_palettes_are_resolved_and_alpha_is_dropped(mode):
    image = Image.fromarray(picture(45, 60)).convert(mode)
    if mode.endswith("A"):
        image.putalpha(100)
    data = encoded(image)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (decode(data) == expected).all()


def test_real_photographs_decode_as_pillow_decodes_them(shared_data):
    images = pq.read_table(shared_data / "caltech101-lt" / "test.parquet")["image"].to_pylist()
    modes = set()
    for data in images[::20]:
        opened = Image.open(io.BytesIO(data))
        modes.add(opened.mode)
        assert (decode(data) == np.asarray(opened.convert("RGB"))).all()
    assert modes == {"RGB", "L"}


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[274] = 6  # "rotate by 90 degrees to see it upright"
    assert decode(encoded(picture(45, 60), "JPEG", exif=exif)).shape == (45, 60, 3)


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"not an image", lambda data: data[: len(data) // 2]],
    ids=["empty", "text", "truncated"],
)
def test_an_image_that_does_not_decode_is_named_by_its_id(damage):
    good = encoded(picture(40, 40), "JPEG")
    images = [good, damage(good)]
    with pytest.raises(
        ValueError, match=r"image with id 4711 does not decode \(\d+ bytes.*shards verify"
    ):
        views_of(images, config(), ids=[9, 4711])
    with pytest.raises(ValueError, match="image with id 4711 "):
        eval_views(images, config(), ids=np.array([9, 4711]))
    with pytest.raises(ValueError, match="image with id 1 "):
        eval_views(images, config())


# Geometry


@pytest.mark.parametrize(
    ("source", "target", "least_psnr"),
    [((20, 26), (32, 32), 55), ((40, 34), (32, 32), 45), ((90, 60), (32, 48), 40),
     ((375, 500), (224, 224), 42), ((300, 100), (32, 32), 34)],
)  # fmt: skip
def test_resizing_is_close_to_pillows_antialiased_bilinear(source, target, least_psnr):
    pixels = picture(*source)
    height, width = target
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.BILINEAR))
    error = host.resize(pixels, height, width).astype(float) - expected
    assert 10 * np.log10(255**2 / np.square(error).mean()) > least_psnr
    assert abs(error.mean()) < 0.3  # no shift of brightness


@pytest.mark.parametrize(
    ("source", "target", "least_psnr"),
    [((20, 26), (32, 32), 38), ((90, 60), (32, 48), 38), ((375, 500), (224, 224), 38)],
)
def test_bicubic_resizing_is_close_to_pillows_and_closer_than_bilinear(source, target, least_psnr):
    pixels = picture(*source)
    height, width = target
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.BICUBIC))
    psnr = {}
    for interpolation in host.FILTERS:
        resized = host.resize(pixels, height, width, interpolation).astype(float)
        psnr[interpolation] = 10 * np.log10(255**2 / np.square(resized - expected).mean())
    assert psnr["bicubic"] > least_psnr
    assert psnr["bicubic"] > psnr["bilinear"]


def test_every_view_is_resized_as_the_option_says():
    image = encoded(picture(50, 40))
    for make in (
        lambda options: eval_views([image], options),
        lambda options: train_views(
            [image], np.array([7]), options, num_contrastive=1, seed=0, epoch=0
        ),
    ):
        options = (
            config(size=32).model_copy(update={"interpolation": name}) for name in host.FILTERS
        )
        made = [make(one) for one in options]
        assert not np.array_equal(*made)


def test_resizing_does_not_shift_the_image():
    ramp = np.broadcast_to(np.linspace(0, 255, 300)[None, :, None], (300, 300, 3))
    resized = host.resize(np.round(ramp).astype(np.uint8), 100, 100)
    assert np.abs(resized[50, :, 0] - np.linspace(0.85, 254.15, 100)).max() < 1


def boxes_of(images, height, width, kind, seed=0):
    draws = uniforms(seed, 0, np.arange(images), 0, 23, stream=Stream.CROP)
    return crops.random_boxes(np.full((images, 2), [height, width]), 0, kind, draws)


def box_of_one(height, width, kind, draws):
    """RandomResizedCrop's search, a try after the other, for one image."""
    (least, most), (narrowest, widest) = kind.scale, kind.ratio
    for i in range(3, 23, 2):
        area = height * width * (least + (most - least) * draws[i])
        ratio = narrowest * (widest / narrowest) ** draws[i + 1]
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[1] * (height - box_height + 1))
            return [top, int(draws[2] * (width - box_width + 1)), box_height, box_width]
    ratio = min(max(width / height, narrowest), widest)
    box_width = min(width, max(1, round(height * ratio)))
    box_height = min(height, max(1, round(width / ratio)))
    return [(height - box_height) // 2, (width - box_width) // 2, box_height, box_width]


def test_boxes_are_those_of_a_search_one_try_after_another():
    rng = np.random.default_rng(0)
    sides = rng.integers(1, 600, (2, 2000)).T
    draws = rng.random((2000, 23))
    for scale, ratio in (((0.2, 1), (3 / 4, 4 / 3)), ((0.9, 1), (0.1, 10)), ((1, 1), (1, 1))):
        kind = ViewConfig(crop="resized", scale=scale, ratio=ratio)
        found = crops.random_boxes(sides, 0, kind, draws)
        images = zip(sides.tolist(), draws.tolist(), strict=True)
        assert found.tolist() == [box_of_one(*pair, kind, row) for pair, row in images]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**32), st.floats(0.01, 1))
def test_boxes_lie_in_the_image(height, width, seed, least):
    kind = ViewConfig(crop="resized", scale=(least, 1))
    for top, left, box_height, box_width in boxes_of(5, height, width, kind, seed):
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert box_height >= 1
        assert box_width >= 1


@pytest.mark.parametrize(("height", "width"), [(375, 500), (40, 400)])  # the latter falls back
def test_boxes_are_distributed_as_torchvisions(height, width):
    kind = ViewConfig(crop="resized")
    ours = boxes_of(4000, height, width, kind)
    image = Image.new("L", (width, height))
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    for q in (0.1, 0.5, 0.9):
        near = np.abs(np.quantile(ours, q, axis=0) - np.quantile(theirs, q, axis=0))
        assert (near <= 0.05 * np.array([height, width, height, width])).all()


def test_boxes_are_as_often_upright_as_wide():
    kind = ViewConfig(crop="resized", scale=(0.01, 0.05), ratio=(1 / 4, 4))
    boxes = boxes_of(2000, 500, 500, kind)
    assert (boxes[:, 3] > boxes[:, 2]).mean() == pytest.approx(0.5, abs=0.05)


def test_a_padded_crop_is_the_image_shifted_over_zeros():
    pixels = picture(32, 32).clip(1)  # so that zeros are padding
    kind = ViewConfig(crop="padded", padding=4, flip=0)
    views = views_of([encoded(pixels)] * 500, config(kind), num_contrastive=0)[:, 0]
    bordered = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    shifts = set()
    for view in views:
        matches = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if (bordered[y : y + 32, x : x + 32] == view).all()
        ]
        assert len(matches) == 1
        shifts.add(matches[0])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(9))
    assert len(shifts) > 75  # of 81


def test_a_padded_crop_resizes_the_whole_image_first():
    kind = ViewConfig(crop="padded", padding=0, flip=0)
    pixels = picture(50, 90)
    view = views_of([encoded(pixels)], config(kind), num_contrastive=0)[0, 0]
    assert (view == host.resize(pixels, 32, 32)).all()


def test_flips_mirror_and_come_as_often_as_asked():
    pixels = picture(32, 32)
    half = WHOLE.model_copy(update={"flip": 0.25})
    views = views_of([encoded(pixels)] * 1000, config(half), num_contrastive=0)[:, 0]
    flipped = (views == pixels[:, ::-1]).all(axis=(1, 2, 3))
    assert ((views == pixels).all(axis=(1, 2, 3)) ^ flipped).all()
    assert flipped.mean() == pytest.approx(0.25, abs=0.05)


def test_the_first_view_classifies_and_the_others_contrast():
    padded = ViewConfig(crop="padded", padding=0, flip=0)
    pixels = picture(32, 32)
    views = views_of([encoded(pixels)], config(padded, ViewConfig(crop="resized")))
    assert views.shape == (1, 3, 32, 32, 3)
    assert (views[0, 0] == pixels).all()
    assert not (views[0, 1] == pixels).all()
    assert not (views[0, 1] == views[0, 2]).all()


def test_views_depend_on_id_seed_and_epoch_and_on_nothing_else():
    images = [encoded(picture(40 + i, 50, seed=i), "JPEG") for i in range(6)]
    kinds = config(ViewConfig(crop="padded"), ViewConfig(crop="resized"))
    ids = np.array([5, 900, 31, 2, 77, 8])
    whole = views_of(images, kinds, ids)
    order = [4, 0, 2]
    assert (views_of([images[i] for i in order], kinds, ids[order]) == whole[order]).all()
    alone = [views_of([image], kinds, [id_])[0] for image, id_ in zip(images, ids, strict=True)]
    assert (np.stack(alone) == whole).all()
    for other in ({"seed": 1}, {"epoch": 1}, {"ids": ids + 1}):
        assert not (views_of(images, kinds, **({"ids": ids} | other)) == whole).all()


def test_evaluation_views_are_the_conventional_centre_crop():
    image = picture(100, 151)
    views = eval_views([encoded(image)] * 2, config(size=56, eval_resize=64))
    assert views.shape == (2, 1, 56, 56, 3)
    expected = CenterCrop(56)(Resize(64)(Image.fromarray(image)))
    error = views[0, 0].astype(float) - np.asarray(expected)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 42
    small = picture(32, 32)
    assert (eval_views([encoded(small)], config())[0, 0] == small).all()


# The process around it


def test_opencv_works_on_one_thread_inside_and_as_before_outside(monkeypatch):
    before = cv2.getNumThreads()
    inside = []
    for kind in host._CROPS:
        monkeypatch.setitem(host._CROPS, kind, lambda *_: inside.append(cv2.getNumThreads()))
    try:
        cv2.setNumThreads(2)
        views_of([encoded(picture(32, 32))], config())
        assert inside == [1, 1, 1]
        assert cv2.getNumThreads() == 2
        with pytest.raises(ValueError, match="does not decode"):
            views_of([b""], config())
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_data_tasks_do_not_pay_for_torch():
    program = "import sys, bcl_ray.data.views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
