"""Images of folders and shards: which, in which order, and what is wrong with some."""

import contextlib
import os
import shutil
import threading
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
from bcl_ray.use.predict.inputs import shards_of, views_of
from bcl_ray.use.predict.listing import Listed, ListFiles, Listing

VIEWS = digits_lt().views.model_copy(update={"image_size": 8, "eval_resize": 10})
RANDOM = np.random.default_rng(0)


def encoded(suffix: str, height: int = 20, width: int = 16) -> bytes:
    pixels = RANDOM.integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def list_files(folder: Path | str, tmp_path: Path, per_list: int = 2) -> tuple[inputs.Folder, int]:
    """The listed folder, and the number of its files."""
    lists = ListFiles(str(tmp_path / "listing"), per_list)
    *_, total = lists.extend(str(folder), lambda: None)
    return inputs.Folder(str(folder), lists), total


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
    found, total = list_files(f"{scheme}{folder}", tmp_path)
    assert total == 6
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
    in_order = sorted(seen, key=str.encode)
    assert list(files.walk(str(root))) == in_order
    for number, path in enumerate(in_order):
        assert list(files.walk(str(root), path)) == in_order[number + 1 :]
        gone = f"{path}-"  # sorts after it, and is not there
        assert list(files.walk(str(root), gone)) == [
            p for p in in_order if p.encode() > gone.encode()
        ]
    shutil.rmtree(root)


def test_links_are_followed_once_and_what_is_no_file_has_that_reason(folder, tmp_path, links):
    faults = links(folder / "B")
    found, total = list_files(folder, tmp_path, 100)
    assert total == len(ORDER) + len(faults)
    rows = found.load(0, total)
    read = dict(zip(rows.keys["path"], rows.images, strict=True))
    assert [read.pop(path) for path in ORDER] == [path.encode() for path in ORDER]
    assert {path.removeprefix("B/"): reason for path, reason in read.items()} == faults


def test_a_name_that_is_not_utf_8_is_refused(folder, tmp_path):
    (Path(os.fsdecode(os.fsencode(folder) + b"/B/\xff.png"))).touch()
    with pytest.raises(ValueError, match=r"B holds a name that is not UTF-8, b'\\xff.png': rename"):
        list_files(folder, tmp_path)


def test_a_file_that_went_after_it_was_listed_has_that_reason(folder, tmp_path):
    found, _ = list_files(folder, tmp_path)
    (folder / "b.jpg").unlink()
    assert found.load(4, 6).images == ["it is no longer there", b"b/1.jpg"]


def test_the_number_of_files_is_told_after_each_list_and_an_empty_folder_is_refused(
    folder, tmp_path
):
    lists = ListFiles(str(tmp_path / "listing"), 4)
    assert list(lists.extend(str(folder), lambda: None)) == [0, 4, 6]
    with pytest.raises(ValueError, match=r"empty holds no files: name a folder of images, or of"):
        list(ListFiles(str(tmp_path / "nothing"), 4).extend(str(folder / "empty"), lambda: None))


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
def test_a_killed_listing_goes_on_after_its_last_full_list(folder, tmp_path, killed_after):
    whole, killed = ListFiles(str(tmp_path / "whole"), 2), ListFiles(str(tmp_path / "killed"), 2)
    list(whole.extend(str(folder), lambda: None))
    first = killed.extend(str(folder), lambda: None)
    for _ in range(killed_after):
        next(first)
    first.close()
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("*.parquet")}
    assert len(written) == max(0, killed_after - 1)
    assert list(killed.extend(str(folder), lambda: None))[-1] == 6
    for file, time in written.items():
        assert file.stat().st_mtime_ns == time
    for number in range(3):
        assert killed.read(number) == whole.read(number)


def test_files_that_come_during_the_listing_count_only_after_the_last_one_listed(folder, tmp_path):
    lists = ListFiles(str(tmp_path / "listing"), 2)
    first = lists.extend(str(folder), lambda: None)
    assert [next(first) for _ in range(3)] == [0, 2, 4]
    first.close()
    for name in ("a.jpg", "b.png"):
        (folder / name).write_bytes(name.encode())
    list(lists.extend(str(folder), lambda: None))
    paths = [path for number in range(4) for path in lists.read(number)]
    assert paths == sorted([*ORDER, "b.png"], key=str.encode)


def test_the_short_end_of_a_killed_listing_is_listed_again(folder, tmp_path):
    lists = ListFiles(str(tmp_path / "listing"), 4)
    list(lists.extend(str(folder), lambda: None))  # killed before the number was recorded
    (folder / "c.jpg").write_bytes(b"c")
    assert list(lists.extend(str(folder), lambda: None)) == [4, 7]
    assert lists.read(1) == ["b.jpg", "b/1.jpg", "c.jpg"]


def test_a_driver_that_was_replaced_lists_nothing(folder, tmp_path):
    def lost():
        raise OSError("another driver has it")

    with pytest.raises(OSError, match="another driver has it"):
        list(ListFiles(str(tmp_path / "listing"), 2).extend(str(folder), lost))
    assert not (tmp_path / "listing").exists()


def test_images_are_known_as_they_are_listed_and_an_error_is_raised_to_who_waits():
    may_go_on = threading.Event()

    def counts(error):
        yield 0
        yield 5
        may_go_on.wait()
        if error:
            raise OSError("does not answer")
        yield 7

    with contextlib.closing(Listing(counts(error=False))) as listing:
        assert listing.wait(5) == Listed(5, complete=False)
        may_go_on.set()
        assert listing.wait(8) == Listed(7, complete=True)
    with (
        contextlib.closing(Listing(counts(error=True))) as listing,
        pytest.raises(OSError, match="does not answer"),
    ):
        listing.wait(8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    target = str(tmp_path_factory.mktemp("digits"))
    return target, write_shards(open_source("digits"), target)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_rows_of_shards_are_those_of_the_whole(digits, data):
    target, manifest = digits
    split = shards_of(target, manifest, "test")
    whole = split.load(0, split.layout.rows)
    assert len(set(whole.keys["id"])) == split.layout.rows == 360
    start = data.draw(st.integers(0, split.layout.rows - 1))
    stop = data.draw(st.integers(start + 1, split.layout.rows))
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
    views, errors = views_of(images, VIEWS)
    assert errors == [""] * 5
    assert (views == eval_views(images, VIEWS)).all()


def test_the_first_picture_of_a_gif_is_read():
    gif = encoded(".gif", 12, 12)
    views, errors = views_of([gif], VIEWS)
    assert errors == [""]
    assert (views == eval_views([gif], VIEWS)).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("it is no longer there", "it is no longer there"),
        (b"", "the image is empty"),
        (b"some text", "it is none of JPEG, PNG, "),
        (encoded(".png")[:300], "does not decode (300 bytes, starting with b'\\x89PNG')"),
        (encoded(".png", 1, 8000), "its sides are too unequal: 8000000 x 1000 pixels when"),
        (cv2.imencode(".png", np.zeros((9, 9), np.uint16))[1].tobytes(), "its mode I;16 is none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_has_a_reason_and_its_neighbours_are_read(image, reason):
    good = encoded(".jpg")
    views = VIEWS.model_copy(update={"eval_resize": 1000}) if "unequal" in reason else VIEWS
    found, errors = views_of([good, image, good], views)
    assert errors[0] == errors[2] == ""
    assert errors[1].startswith(reason)
    assert not found[1].any()
    assert (found[[0, 2]] == eval_views([good, good], views)).all()


def test_an_image_beyond_the_limit_of_pixels_is_not_decoded(monkeypatch):
    monkeypatch.setattr(inputs, "MAX_PIXELS", 300)
    _, errors = views_of([encoded(".png")], VIEWS)
    assert errors == ["16 x 20 pixels are more than max_pixels (300)"]
