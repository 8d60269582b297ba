"""Images of folders and shards: which, in which order, and what is wrong with some."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.data.views.host import eval_views
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.storage import files
from bcl_ray.use.predict import inputs
from bcl_ray.use.predict.inputs import list_folder, shards_of, views_of

VIEWS = digits_lt().views.model_copy(update={"image_size": 8, "eval_resize": 10})
RANDOM = np.random.default_rng(0)


def encoded(suffix: str, height: int = 20, width: int = 16) -> bytes:
    pixels = RANDOM.integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def list_files(folder: Path, tmp_path: Path, per_list: int = 2) -> inputs.Folder:
    return list_folder(str(folder), str(tmp_path / "listing"), per_list, lambda total: None)


@pytest.fixture
def folder(tmp_path):
    """Nested files with names that URIs and lists could trip over, and some that do not count."""
    root = tmp_path / "images"
    for name in ("b/1.jpg", "b.jpg", "b-c.jpg", "a b/ü#?.png", "a b/%41.png", "B/deep/er/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    for name in (".hidden/x.jpg", ".DS_Store", "b/.thumb.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "empty").mkdir()
    return root


ORDER = ["B/deep/er/x.png", "a b/%41.png", "a b/ü#?.png", "b-c.jpg", "b.jpg", "b/1.jpg"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_come_in_the_order_of_their_paths_bytes(folder, tmp_path, scheme):
    assert sorted(ORDER, key=str.encode) == ORDER
    assert list(files.walk(f"{scheme}{folder}")) == ORDER
    found = list_folder(f"{scheme}{folder}", str(tmp_path / "listing"), 2, lambda total: None)
    assert found.total == 6
    rows = [found.load(start, start + 2) for start in (0, 2, 4)]
    assert [path for part in rows for path in part.keys["path"]] == ORDER
    assert [image.decode() for part in rows for image in part.images] == ORDER


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text("ab-./é", min_size=1, max_size=4).map(lambda text: text.strip("/"))))
def test_the_order_of_any_tree_is_that_of_its_whole_paths(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("tree")
    for name in names:
        with_suffix = "/".join(part + "_" for part in name.split("/") if part)
        if with_suffix:
            (root / with_suffix).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{with_suffix}f").write_bytes(b"")
    names = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
    seen = [p for p in names if not any(part.startswith(".") for part in p.split("/"))]
    assert list(files.walk(str(root))) == sorted(seen, key=str.encode)
    shutil.rmtree(root)


def test_a_file_that_went_after_it_was_listed_has_that_reason(folder, tmp_path):
    found = list_files(folder, tmp_path)
    (folder / "b.jpg").unlink()
    assert found.load(4, 6).images == ["it is no longer there", b"b/1.jpg"]


def test_a_list_is_told_when_it_is_written_and_an_empty_folder_is_refused(folder, tmp_path):
    totals = []
    list_folder(str(folder), str(tmp_path / "listing"), 4, totals.append)
    assert totals == [4, 6]
    with pytest.raises(ValueError, match=r"empty holds no files: name a folder of images, or of"):
        list_files(folder / "empty", tmp_path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    target = str(tmp_path_factory.mktemp("digits"))
    return target, write_shards(open_source("digits"), target)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_rows_of_shards_are_those_of_the_whole(digits, data):
    target, manifest = digits
    split = shards_of(target, manifest, "test")
    whole = split.load(0, split.total)
    assert len(set(whole.keys["id"])) == split.total == 360
    start = data.draw(st.integers(0, split.total - 1))
    stop = data.draw(st.integers(start + 1, split.total))
    part = split.load(start, stop)
    assert part.images == whole.images[start:stop]
    assert part.keys == {name: column[start:stop] for name, column in whole.keys.items()}


def test_a_split_that_is_not_there_is_refused_with_those_that_are(digits):
    target, manifest = digits
    with pytest.raises(ValueError, match=r"^--split 'val' is not in .*: there is train, test$"):
        shards_of(target, manifest, "val")
    assert read_manifest(target) == manifest


def test_views_are_those_of_evaluation():
    images = [encoded(suffix) for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff")]
    views, faults = views_of(images, VIEWS)
    assert faults == [""] * 5
    assert (views == eval_views(images, VIEWS)).all()


def test_the_first_picture_of_a_gif_is_read():
    gif = encoded(".gif", 12, 12)
    views, faults = views_of([gif], VIEWS)
    assert faults == [""]
    assert (views == eval_views([gif], VIEWS)).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("it is no longer there", "it is no longer there"),
        (b"", "the image is empty"),
        (b"some text", "does not decode: cannot identify image file its bytes"),
        (encoded(".png")[:300], "does not decode (300 bytes, starting with b'\\x89PNG')"),
        (encoded(".png", 1, 8000), "its sides are too unequal: 8000000 x 1000 pixels when"),
        (cv2.imencode(".png", np.zeros((9, 9), np.uint16))[1].tobytes(), "its mode I;16 is none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_has_a_reason_and_its_neighbours_are_read(image, reason):
    good = encoded(".jpg")
    views = VIEWS.model_copy(update={"eval_resize": 1000}) if "unequal" in reason else VIEWS
    found, faults = views_of([good, image, good], views)
    assert faults[0] == faults[2] == ""
    assert faults[1].startswith(reason)
    assert not found[1].any()
    assert (found[[0, 2]] == eval_views([good, good], views)).all()


def test_an_image_beyond_the_limit_of_pixels_is_not_decoded(monkeypatch):
    monkeypatch.setattr(inputs, "MAX_PIXELS", 300)
    _, faults = views_of([encoded(".png")], VIEWS)
    assert faults == ["16 x 20 pixels are more than max_pixels (300)"]
