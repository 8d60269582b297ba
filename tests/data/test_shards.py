import hashlib
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs

from bcl_ray.data.decode import decode
from bcl_ray.data.image_check import MODES, checker_settings, image_fault
from bcl_ray.data.shards import (
    MANIFEST,
    NumberedNames,
    ShardColumns,
    ShardInfo,
    read_manifest,
    verify_shards,
    write_shards,
)
from bcl_ray.data.shards.manifest import with_fingerprint
from bcl_ray.data.shards.read import read_footer
from bcl_ray.data.shards.split_writer import num_shards, row_group_rows
from bcl_ray.data.sources import Source, SourceSplit, open_source
from bcl_ray.machine.parallel import run_in_processes
from bcl_ray.storage import files
from bcl_ray.storage.files import filesystems


def png(value: int, size: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), value).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(**options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def tiff(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


def split_of(labels, images=None, **options) -> SourceSplit:
    labels = np.array(labels, dtype=np.int64)
    images = images or [png(row % 256) for row in range(len(labels))]
    options = {"already_shuffled": True, "where": lambda row: f"image {row}"} | options
    return SourceSplit(labels, lambda rows: (images[row] for row in rows.tolist()), **options)


def source_of(train: SourceSplit, classes: int = 2, **others: SourceSplit) -> Source:
    return Source("fake", tuple(f"class{c}" for c in range(classes)), {"train": train, **others})


def balanced(rows: int, classes: int = 2) -> Source:
    return source_of(split_of(np.arange(rows) % classes), classes)


def read_split(target, split) -> pa.Table:
    return pa.concat_tables([pq.read_table(f"{target}/{name}") for name in split.shards.names])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_every_row_of_the_source_once(tmp_path):
    source = open_source("digits")
    manifest = write_shards(source, str(tmp_path))
    assert read_manifest(str(tmp_path)) == manifest
    for name, split in manifest.splits.items():
        table = read_split(tmp_path, split).sort_by("id")
        origin = source.splits[name]
        rows = np.arange(len(origin.labels))
        assert table["id"].to_pylist() == rows.tolist()
        assert table["label"].to_pylist() == origin.labels.tolist()
        assert table["image"].to_pylist() == list(origin.read(rows))
        assert split.class_counts == tuple(np.bincount(origin.labels).tolist())
    assert {path.name.rpartition("-")[0] for path in tmp_path.iterdir()} == {"", "train", "test"}
    assert {"manifest.json", "manifest.shards.parquet"} <= set(files_of(tmp_path))
    assert not (tmp_path / "incomplete.txt").exists()


def test_the_layout_follows_from_the_manifest_by_arithmetic(tmp_path):
    split = write_shards(balanced(1003), str(tmp_path)).splits["train"]
    assert split.row_group_rows == 8
    assert sorted(set(split.shards.rows)) == [125, 126]
    assert split.shards.rows.sum() == split.rows == 1003
    for shard in split.shards:
        meta = pq.ParquetFile(tmp_path / shard.file).metadata
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        full, rest = divmod(shard.rows, split.row_group_rows)
        assert sizes == [split.row_group_rows] * full + [rest] * (rest > 0)


def test_shards_store_images_plainly(tmp_path):
    manifest = write_shards(balanced(100), str(tmp_path))
    file = pq.ParquetFile(tmp_path / manifest.splits["train"].shards.names[0])
    fields = [(field.name, str(field.type)) for field in file.schema_arrow]
    assert fields == [("id", "int64"), ("image", "binary"), ("label", "int32")]
    image = file.metadata.row_group(0).column(1)
    assert image.compression == "UNCOMPRESSED"
    assert not image.has_dictionary_page
    assert not image.is_stats_set


@pytest.mark.parametrize(
    ("rows", "mean_bytes", "expected"),
    [
        (10, 100, 8),
        (10_847, 2000, 42),
        (10**6, 100, 256),
        (10**6, 110_000, 38),
        (10**6, 10**8, 1),
    ],
)
def test_row_groups_are_small_and_numerous(rows, mean_bytes, expected):
    assert row_group_rows(rows, mean_bytes) == expected


@given(rows=st.integers(1, 10**7), mean_bytes=st.integers(1, 10**6))
@settings(deadline=None)
def test_there_are_enough_shards_and_none_is_empty(rows, mean_bytes):
    group = row_group_rows(rows, mean_bytes)
    shards = num_shards(rows, rows * mean_bytes, group, 256 << 20)
    assert 1 <= shards <= rows
    assert rows < 8 * group or shards >= 8
    assert rows * mean_bytes / shards <= 256 << 20 or shards == rows


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "rows"), [(100, 10_847), (50, 12_608), (10, 19_573)])
def test_cifar100_has_the_published_number_of_images(shared_data, tmp_path, factor, rows):
    source = open_source("cifar100", str(shared_data / "cifar100-lt"))
    manifest = write_shards(
        source, str(tmp_path), profile="exponential", imbalance_factor=factor, max_per_class=500
    )
    train, test = manifest.splits["train"], manifest.splits["test"]
    assert (train.rows, test.rows) == (rows, 10_000)
    assert (train.class_counts[0], train.class_counts[99]) == (500, 500 // factor)
    assert set(test.class_counts) == {100}


@pytest.mark.slow
def test_caltech101_keeps_its_natural_tail_byte_for_byte(shared_data, tmp_path):
    origin = shared_data / "caltech101-lt"
    manifest = write_shards(open_source("parquet", str(origin)), str(tmp_path))
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        "train": 2433,
        "test": 990,
    }
    assert manifest.class_names[0] == "airplanes"
    assert manifest.splits["train"].class_counts[0] == 277
    images = pq.read_table(origin / "test.parquet")["image"].to_pylist()
    written = read_split(tmp_path, manifest.splits["test"]).sort_by("id")["image"].to_pylist()
    assert written == images
    assert verify_shards(str(tmp_path)) == []


def test_only_the_training_split_is_thinned(tmp_path):
    labels = np.arange(300) % 3
    source = source_of(split_of(labels), 3, test=split_of(labels))
    manifest = write_shards(source, str(tmp_path), profile="step", imbalance_factor=10)
    assert manifest.splits["train"].class_counts == (100, 10, 10)
    assert manifest.splits["test"].class_counts == (100, 100, 100)
    ids = read_split(tmp_path, manifest.splits["train"])["id"].to_numpy()
    assert sorted(ids[ids % 3 == 1]) == list(range(1, 30, 3))  # the first ten, by their old index


def test_named_ids_are_kept(tmp_path):
    train = split_of([0, 1, 0], ids=np.array([70, 50, 60]))
    manifest = write_shards(source_of(train), str(tmp_path))
    table = read_split(tmp_path, manifest.splits["train"]).sort_by("id")
    assert table["id"].to_pylist() == [50, 60, 70]
    assert table["label"].to_pylist() == [1, 0, 0]


def test_any_contiguous_piece_is_class_mixed(tmp_path):
    labels = np.repeat(np.arange(4), 500)  # class by class, as many sources are
    manifest = write_shards(source_of(split_of(labels), 4), str(tmp_path))
    for shard in manifest.splits["train"].shards:  # of 250 rows
        counts = np.bincount(pq.read_table(tmp_path / shard.file)["label"].to_numpy(), minlength=4)
        # Hypergeometric around 62.5 with deviation 6.4: this is five of them.
        assert np.abs(counts - 62.5).max() < 32


def test_the_same_source_profile_and_seed_give_the_same_bytes(tmp_path):
    manifests = [
        write_shards(balanced(200), str(tmp_path / name), seed=seed, shard_bytes=2000)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert manifests[0].fingerprint == manifests[1].fingerprint != manifests[2].fingerprint
    first, _, other = (
        read_split(tmp_path / name, manifest.splits["train"])["id"].to_pylist()
        for name, manifest in zip("abc", manifests, strict=True)
    )
    assert first != other
    assert sorted(first) == sorted(other)


def bomb() -> bytes:
    """A PNG of 120 bytes that claims 100,000 x 100,000 pixels."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    content = bytearray(png(0))
    content[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (jpeg()[:-2000], "does not decode ("),
        (half(jpeg()), "does not decode ("),
        (half(jpeg(progressive=True)), "does not decode ("),
        (png(0, 40)[:-30], "does not decode ("),
        (tiff("F"), "its mode F is none of 1, L, LA, P, "),
        (tiff("I"), "its mode I is none of "),
        (tiff("I;16"), "its mode I;16 is none of "),
        (tiff("LAB"), "its mode LAB is none of "),
        (b"hello", "it is none of JPEG, PNG, WEBP, BMP, TIFF, GIF, "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is PostScript, "),
        (b"", "the image is empty"),
        (png(0, 11), "11 x 11 pixels are more than max_pixels (100)"),
        (bomb(), "100000 x 100000 pixels are more than max_pixels (100)"),
    ],
    ids=[
        "cut jpeg",
        "half jpeg",
        "half progressive jpeg",
        "cut png",
        "F",
        "I",
        "I;16",
        "LAB",
        "text",
        "postscript",
        "empty",
        "large",
        "bomb",
    ],
)
def test_unusable_images_say_why(content, fault):
    limit = 100 if "max_pixels" in fault else 10_000
    with checker_settings():
        assert image_fault(content, limit).startswith(fault)


@pytest.mark.parametrize("content", [png(0), jpeg(), jpeg(progressive=True), tiff("CMYK")])
def test_usable_images_have_no_fault(content):
    with checker_settings():
        assert image_fault(content, 64 * 64) is None


def test_max_pixels_may_be_beyond_pillows_own_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 100 pixels would be a bomb to it
    with checker_settings():
        assert image_fault(png(0, 10), 100) is None
    assert Image.MAX_IMAGE_PIXELS == 40


def test_what_passes_the_check_is_what_training_decodes():
    """In every mode that passes, training sees the pixels of the conventional pipeline."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    for mode in MODES:
        buffer = io.BytesIO()
        # Pillow makes no PA from RGB.
        start = colours.convert("P") if mode == "PA" else colours
        start.convert(mode).save(buffer, "TIFF")
        content = buffer.getvalue()
        with checker_settings():
            assert image_fault(content, 64) is None
        theirs = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        assert np.abs(decode(content) - theirs).max() <= (mode == "YCbCr"), mode


def test_faults_are_reported_once_and_not_by_opencv_too(capfd):
    with checker_settings():
        assert image_fault(half(jpeg()), 64 * 64)
    assert capfd.readouterr() == ("", "")


def spoiled(bad: int) -> Source:
    """Rows 0 to bad - 1 are empty images, then 40 good ones; two of the labels are outside."""
    images = [b""] * bad + [png(row) for row in range(40)]
    labels = [0, 1] * (len(images) // 2)
    labels[-1], labels[-2] = 2, -1
    return source_of(split_of(labels, images), test=split_of([0, 1]))


def test_bad_images_stop_sharding_with_the_first_ten_and_the_total(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ValueError, match=r"14 of 54 rows are bad") as stopped:
        write_shards(spoiled(12), str(target))
    lines = str(stopped.value).splitlines()
    assert lines[0].endswith("with --on-bad-image skip. The first 10:")
    assert lines[1:] == [f"  train row {row}, image {row}: the image is empty" for row in range(10)]
    assert list(target.rglob("*")) == []


def test_skipped_images_are_listed_and_counted(tmp_path):
    manifest = write_shards(spoiled(2), str(tmp_path), on_bad_image="skip")
    train = manifest.splits["train"]
    assert (train.rows, train.quarantined) == (38, 4)
    assert manifest.splits["test"].quarantined == 0
    lines = (tmp_path / "quarantine-train.jsonl").read_text().splitlines()
    faults = {row["row"]: (row["label"], row["fault"]) for row in map(json.loads, lines)}
    assert faults == {
        0: (0, "the image is empty"),
        1: (1, "the image is empty"),
        40: (-1, "label -1 is outside 0..1"),
        41: (2, "label 2 is outside 0..1"),
    }
    assert not (tmp_path / "quarantine-test.jsonl").exists()
    assert verify_shards(str(tmp_path)) == []


@pytest.mark.parametrize("already_shuffled", [True, False])
def test_bad_rows_are_replaced_so_that_the_profile_has_its_sizes(tmp_path, already_shuffled):
    """By others of their class; the good ones among the chosen stay."""
    labels, options = np.arange(400) % 4, {"profile": "exponential", "imbalance_factor": 8}
    options |= {"max_per_class": 40, "on_bad_image": "skip"}
    good = source_of(split_of(labels, already_shuffled=already_shuffled), 4)
    first = write_shards(good, str(tmp_path / "good"), **options)
    chosen = read_split(tmp_path / "good", first.splits["train"])["id"].to_pylist()
    images = [b"" if row in chosen[::3] else png(row % 256) for row in range(400)]
    some = source_of(split_of(labels, images, already_shuffled=already_shuffled), 4)
    manifest = write_shards(some, str(tmp_path / "some"), **options)
    train = manifest.splits["train"]
    assert train.class_counts == first.splits["train"].class_counts == (40, 20, 10, 5)
    kept = set(read_split(tmp_path / "some", train)["id"].to_pylist())
    assert kept >= set(chosen) - set(chosen[::3])
    assert all(images[row] for row in kept)
    assert train.quarantined >= len(chosen[::3])
    assert verify_shards(str(tmp_path / "some")) == []


def test_a_profile_is_lowered_to_what_is_left_without_bad_rows(tmp_path):
    labels = np.array([0] * 40 + [1] * 20)
    images = [png(row) for row in range(40)] + [b""] * 8 + [png(row) for row in range(12)]
    options = {"profile": "exponential", "imbalance_factor": 2, "on_bad_image": "skip"}
    manifest = write_shards(source_of(split_of(labels, images)), str(tmp_path), **options)
    assert manifest.splits["train"].class_counts == (25, 12)
    with pytest.raises(ValueError, match=r"asks for 20 images of class 1, and the source has 12"):
        write_shards(
            source_of(split_of(labels, images)), str(tmp_path / "b"), max_per_class=40, **options
        )


def test_a_list_with_bad_lines_and_missing_files_is_reported_by_name(tmp_path):
    (tmp_path / "ok.png").write_bytes(png(0))
    (tmp_path / "list").write_text("ok.png 0\ngone.png 0\nnonsense\n")
    source = open_source("list", str(tmp_path), splits={"train": f"{tmp_path}/list"})
    with pytest.raises(ValueError, match="2 of 3 rows are bad") as stopped:
        write_shards(source, str(tmp_path / "target"))
    assert "train row 1, gone.png: the file does not exist" in str(stopped.value)
    assert f"train row 2, {tmp_path}/list line 3: line 3 of" in str(stopped.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (balanced(4, 2), {"imbalance_factor": 5}, "imbalance_factor does nothing for profile"),
        (balanced(4, 2), {"shard_bytes": 0}, r"shard_bytes \(0\) must be at least 1"),
        (balanced(4, 2), {"on_bad_image": "s"}, "on_bad_image 's' must be stop or skip"),
        (
            source_of(split_of([0, 2])),
            {},
            r"images: 1 \(class1\).*image 1: label 2 is outside 0..1",
        ),
        (balanced(4, 2), {"seed": -1}, r"seed \(-1\) must be at least 0"),
        (source_of(split_of([0, 0, 2]), 3), {}, r"1 of 3 classes have no training images: 1 \(cl"),
        (source_of(split_of([0, 1], [png(0), b""])), {"on_bad_image": "skip"}, r"images: 1 \(cl"),
        (source_of(split_of([0, 1]), test=split_of([])), {}, "split 'test' has no images"),
        (
            source_of(split_of([0, 1]), **{"a/b": split_of([0])}),
            {},
            "split name 'a/b' must consist",
        ),
        (Source("fake", ("a",), {"test": split_of([0])}), {}, "source 'fake' has no split 'train'"),
        (
            source_of(split_of([0, 1, 1, 0], ids=np.array([5, 7, 5, 7]))),
            {},
            r"2 ids occur more than once: 5 \(2 times, first in image 0\), 7 \(2 times",
        ),
    ],
)
def test_sources_that_make_no_data_set_are_refused(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        write_shards(source, str(tmp_path / "target"), **options)
    assert list((tmp_path / "target").rglob("*")) == []


def test_a_target_in_use_is_left_alone(tmp_path):
    write_shards(balanced(20), str(tmp_path))
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="already holds a data set: choose another target"):
        write_shards(balanced(20), str(tmp_path), seed=1)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds Parquet files that `bcl-ray shard` did not write"):
        write_shards(balanced(20), str(tmp_path))
    assert files_of(tmp_path).items() <= before.items()


def test_temporary_files_of_others_are_left_alone(tmp_path, monkeypatch):
    """The lease's thread writes one while an attempt begins, and a kill may leave it."""
    others = [tmp_path / ".driver.lease.123.tmp", tmp_path / "notes.tmp"]
    for file in others:
        file.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        write_shards(balanced(200), str(tmp_path), progress=interrupt_at("writing train", 50))
    own = [f".{name}.0123abcd.tmp" for name in ("a-00000.parquet", "quarantine-a.jsonl", MANIFEST)]
    for name in own:
        (tmp_path / name).write_bytes(b"")
    write_shards(balanced(200), str(tmp_path))
    assert all(file.exists() for file in others)
    assert not any((tmp_path / name).exists() for name in own)


class Pngs:
    """Images that other processes can read, too."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (png(row % 256) for row in self.rows)


def numbered(rows: int, **options) -> Source:
    labels = np.arange(rows) % 2
    options = {"already_shuffled": True, "where": lambda row: f"image {row}"} | options
    return source_of(SourceSplit(labels, lambda rows: Pngs(rows.tolist()), **options))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_shards import numbered
from bcl_ray.data.shards import write_shards
from bcl_ray.machine.parallel import run_in_processes

def progress(stage, done, rows):
    if stage == {stage!r} and done > rows / 2:
        os.kill(os.getpid(), signal.SIGKILL)

with run_in_processes(2) as run:
    write_shards(numbered(1000), {target!r}, progress=progress, run=run)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reading train", "writing train"])
def test_after_a_kill_the_next_attempt_goes_on_and_gives_the_same_bytes(tmp_path, stage, caplog):
    target = tmp_path / "target"
    script = KILLED.format(tests=str(Path(__file__).parent), target=str(target), stage=stage)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="so it is not a data set; sharding was interrupted: run"):
        read_manifest(str(target))
    seen = []
    write_shards(numbered(1000), str(target), progress=lambda *step: seen.append(step))
    write_shards(numbered(1000), str(tmp_path / "undisturbed"))
    assert files_of(target) == files_of(tmp_path / "undisturbed")
    found = re.search(r"has checked (\d) parts of the source, and written (\d) shards", caplog.text)
    checked, written = map(int, found.groups())
    assert (checked >= 2) if stage == "reading train" else (checked == 4 and written >= 5), found


def test_finished_tasks_of_an_interrupted_attempt_are_not_repeated(tmp_path):
    reads = []

    def counted(rows):
        reads.extend(rows.tolist())
        return Pngs(rows.tolist())

    source = source_of(SourceSplit(np.arange(1000) % 2, counted, str, already_shuffled=True))
    for stage, rows in (("reading train", 512), ("writing train", 625)):
        with pytest.raises(KeyboardInterrupt):
            write_shards(source, str(tmp_path), progress=interrupt_at(stage, rows))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(before) == 5
    write_shards(source, str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(reads) == list(range(1000)), "and none is read from the source twice"
    assert verify_shards(str(tmp_path)) == []


def interrupt_at(stage, rows):
    def progress(name, done, _):
        if (name, done) == (stage, rows):
            raise KeyboardInterrupt

    return progress


def test_an_attempt_with_other_options_starts_over(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        write_shards(balanced(200), str(tmp_path / "a"), progress=interrupt_at("writing train", 50))
    write_shards(balanced(200), str(tmp_path / "a"), seed=1)
    assert "had other options, another source or another pyarrow; starting over" in caplog.text
    write_shards(balanced(200), str(tmp_path / "b"), seed=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("random_access", [True, False])
def test_the_bytes_are_the_same_for_any_number_of_processes(tmp_path, random_access):
    source = numbered(1000, random_access=random_access)
    for count in (1, 2, 3):
        with run_in_processes(count) as run:
            write_shards(source, str(tmp_path / str(count)), run=run)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "3")
    assert len(files_of(tmp_path / "1")) == 10, "eight shards and the two files of the manifest"


def test_images_are_copied_only_where_rows_cannot_be_read_in_any_order(tmp_path):
    copied = []

    def progress(stage, *_):
        if stage == "writing train":
            copied.append(sum(path.stat().st_size for path in tmp_path.rglob("copied-*")))

    for random_access in (True, False):
        source = numbered(300, random_access=random_access)
        write_shards(source, str(tmp_path / str(random_access)), progress=progress)
    total = sum(map(len, Pngs(range(300))))
    assert copied == [0] * 8 + [total] * 8
    assert not list(tmp_path.rglob("progress/*"))


@pytest.mark.parametrize("change", ["content", "missing"])
def test_an_image_that_changes_after_its_check_stops_sharding(tmp_path, change):
    for row in range(20):
        (tmp_path / f"{row}.png").write_bytes(png(row))
    (tmp_path / "list").write_text("".join(f"{row}.png {row % 2}\n" for row in range(20)))
    source = open_source("list", str(tmp_path), splits={"train": f"{tmp_path}/list"})

    def progress(stage, *_):
        if stage == "reading train" and change == "content":
            (tmp_path / "7.png").write_bytes(png(77))
        elif stage == "reading train":
            (tmp_path / "7.png").unlink()

    with pytest.raises(ValueError, match=r"the image with id 7 was changed or removed while"):
        write_shards(source, str(tmp_path / "target"), progress=progress)
    if change == "content":
        write_shards(source, str(tmp_path / "target"))  # it starts over
        assert verify_shards(str(tmp_path / "target")) == []


@pytest.mark.slow
def test_a_target_that_is_not_local_works_too(tmp_path, monkeypatch):
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    for module in (files, filesystems):
        monkeypatch.setattr(
            module, "resolve", lambda uri: (store, uri.removeprefix("test://bucket").strip("/"))
        )
    (tmp_path / "set" / "progress").mkdir(parents=True)  # an object store needs no folders
    manifest = write_shards(balanced(100), "test://bucket/set")
    assert read_manifest("test://bucket/set") == manifest
    assert verify_shards("test://bucket/set") == []


def alter_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)


def alter_manifest(folder: Path, **changes) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "difference"),
    [
        (lambda folder: (folder / "train-00003.parquet").unlink(), "train-00003.parquet: missing"),
        (
            lambda folder: alter_byte(folder / "train-00000.parquet"),
            "train-00000.parquet: SHA-256 differs, so its content was changed",
        ),
        (
            lambda folder: os.truncate(folder / "train-00001.parquet", 100),
            "train-00001.parquet: 100 bytes instead of ",
        ),
        (
            lambda folder: (folder / "train-00009.parquet").write_bytes(b""),
            "train-00009.parquet: not in the manifest",
        ),
        (
            lambda folder: alter_manifest(folder, source="other"),
            "manifest.json: the fingerprint does not fit the content",
        ),
    ],
    ids=["missing", "changed", "cut", "extra", "manifest"],
)
def test_verify_names_what_differs(tmp_path, damage, difference):
    write_shards(balanced(100), str(tmp_path))
    assert verify_shards(str(tmp_path)) == []
    damage(tmp_path)
    (found,) = verify_shards(str(tmp_path))
    assert found.startswith(difference)


def test_verify_counts_what_hashes_cannot_tell(tmp_path):
    manifest = write_shards(balanced(100), str(tmp_path))
    train = manifest.splits["train"]
    false = train.model_copy(update={"class_counts": (51, 49)})
    altered = with_fingerprint(manifest.model_copy(update={"splits": {"train": false}}))
    alter_manifest(tmp_path, **json.loads(altered.model_dump_json()))
    assert verify_shards(str(tmp_path)) == ["train: class 0 has 50 images instead of 51"]


def test_manifests_that_cannot_be_trusted_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest.json, so it is not a data set; write"):
        read_manifest(str(tmp_path))
    write_shards(balanced(10), str(tmp_path))
    alter_manifest(tmp_path, source="other")
    with pytest.raises(ValueError, match=r"manifest.json was changed after it was written"):
        read_manifest(str(tmp_path))
    alter_manifest(tmp_path, source=None)
    with pytest.raises(ValueError, match=r"manifest.json: source: Input should be a valid string"):
        read_manifest(str(tmp_path))
    alter_manifest(tmp_path, format_version=3)
    with pytest.raises(ValueError, match="has format version 3, and this bcl-ray reads 1 and 2"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not JSON"):
        read_manifest(str(tmp_path))


def test_a_file_of_shards_that_does_not_belong_to_the_manifest_is_refused(tmp_path):
    write_shards(balanced(100), str(tmp_path / "one"))
    write_shards(balanced(100, classes=5), str(tmp_path / "two"))
    shards = tmp_path / "one" / "manifest.shards.parquet"
    shards.write_bytes((tmp_path / "two" / "manifest.shards.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"shards.parquet is not the one that manifest.json was"):
        read_manifest(str(tmp_path / "one"))
    shards.unlink()
    with pytest.raises(ValueError, match=r"shards.parquet is missing: restore it, or shard again"):
        read_manifest(str(tmp_path / "one"))


@pytest.mark.parametrize(
    "splits", [None, [], {"train": None}, {"train": {}}, {"train": {"rows": 100}, "test": {}}]
)
def test_splits_that_the_file_of_shards_does_not_have_are_refused(tmp_path, splits):
    write_shards(balanced(100), str(tmp_path))
    alter_manifest(tmp_path, splits=splits)
    with pytest.raises(ValueError, match=r"manifest.json: splits.* shard again"):
        read_manifest(str(tmp_path))


@pytest.mark.slow
def test_the_manifest_is_short_however_many_shards_there_are(tmp_path):
    """People read it; and it covers the columns of shards, by their hash."""
    written = write_shards(balanced(1000), str(tmp_path), shard_bytes=300)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["splits"]["train"]["shards"] == len(written.splits["train"].shards) > 100
    assert len((tmp_path / "manifest.json").read_text()) < 1000
    columns = (tmp_path / "manifest.shards.parquet").read_bytes()
    assert content["shards_sha256"] == hashlib.sha256(columns).hexdigest()


def test_columns_of_shards_are_those_of_the_files(tmp_path):
    written = write_shards(balanced(100), str(tmp_path))
    for shard in read_manifest(str(tmp_path)).splits["train"].shards:
        content = (tmp_path / shard.file).read_bytes()
        assert shard.rows == pq.ParquetFile(tmp_path / shard.file).metadata.num_rows
        assert shard.bytes == len(content)
        assert shard.sha256 == hashlib.sha256(content).hexdigest()
    assert pickle.loads(pickle.dumps(written)) == written  # noqa: S301


def test_names_that_follow_from_numbers_are_not_stored():
    def info(file: str) -> ShardInfo:
        return ShardInfo(file, 1, 2, "0" * 64)

    numbered = ShardColumns.of(
        [info(f"train-{number:05d}.parquet") for number in range(100_001)]
    ).names
    assert numbered == NumberedNames("train", 100_001)
    assert numbered[-1] == "train-100000.parquet"
    assert numbered[2:4] == ["train-00002.parquet", "train-00003.parquet"]
    with pytest.raises(IndexError):
        numbered[100_001]
    assert len(pickle.dumps(numbered)) < 200
    assert ShardColumns.of([info("train-00001.parquet"), info("b")]).names == (
        "train-00001.parquet",
        "b",
    )


def test_a_manifest_of_format_1_is_read_with_the_fingerprint_that_it_had():
    """Written at 557c235, the last commit that wrote this format."""
    manifest = read_manifest(str(Path(__file__).parent / "format_1"))
    assert manifest.fingerprint.startswith("f25072bb83ff")
    train = manifest.splits["train"]
    assert train.shards.rows.tolist() == [2, 2, 2, 2, 2, 2, 1, 1]
    assert train.shards[7].file == "train-00007.parquet"
    assert train.shards[0].sha256.startswith("caf9a7e44ecf490c")


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([{"file": "a"}], r"splits.train.shards.0.rows: Field required"),
        (3, r"splits.train.shards: Input should be a valid tuple"),
    ],
)
def test_entries_of_format_1_that_were_mangled_are_named(tmp_path, shards, message):
    content = json.loads((Path(__file__).parent / "format_1" / "manifest.json").read_text())
    content["splits"]["train"]["shards"] = shards
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"manifest.json: {message}"):
        read_manifest(str(tmp_path))


def test_progress_reports_the_stage_and_reaches_the_end(tmp_path):
    seen = []
    write_shards(balanced(700), str(tmp_path), progress=lambda *step: seen.append(step))
    assert seen[:2] == [("reading train", 256, 700), ("reading train", 512, 700)]
    assert ("reading train", 700, 700) in seen
    assert seen[-1] == ("writing train", 700, 700)


MEMORY = """
import io, resource, sys
import numpy as np
from PIL import Image
from bcl_ray.data.shards import write_shards
from bcl_ray.data.sources import Source, SourceSplit

rows, target = int(sys.argv[1]), sys.argv[2]
buffer = io.BytesIO()
Image.new("L", (2, 2)).save(buffer, "PNG")
image = buffer.getvalue()

def read(rows):
    for row in rows:
        yield image + bytes(1000)  # decoders stop at the image's end; each row is a new object

train = SourceSplit(np.arange(rows) % 10, read, str, already_shuffled=False)
write_shards(Source("fake", tuple("0123456789"), {"train": train}), target, shard_bytes=1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for rows in (20_000, 200_000):  # 21 and 213 MB of images
        command = [sys.executable, "-c", MEMORY, str(rows), str(tmp_path / str(rows))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.15 * peaks[0]


def test_the_cache_of_footers_counts_bytes_not_footers(tmp_path):
    write_shards(balanced(100), str(tmp_path), shard_bytes=1)
    names = read_manifest(str(tmp_path)).splits["train"].shards.names
    cache = read_footer.cache
    cache.clear()
    footers = [read_footer(str(tmp_path / name)) for name in names]
    assert len(footers) == len(cache) == 100
    assert read_footer(str(tmp_path / names[0])) is footers[0]
    assert cache.currsize == sum(11 * footer.serialized_size for footer in footers)
    assert cache.maxsize == 64 * 2**20
