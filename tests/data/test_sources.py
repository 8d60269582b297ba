import io
import json
import os
import pickle
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcl_ray.data.shards import write_shards
from bcl_ray.data.sources import open_source, parse_list


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def contents(split, rows=None) -> list:
    return list(split.read(np.arange(len(split.labels)) if rows is None else np.array(rows)))


def write_tree(root, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def write_table(path, metadata=None, **columns) -> str:
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=3)
    return str(path)


def test_digits_leave_enough_of_each_class_for_a_long_tail():
    source = open_source("digits")
    train, test = source.splits["train"], source.splits["test"]
    assert len(source.class_names) == 10
    assert np.bincount(test.labels).tolist() == [36] * 10
    assert np.bincount(train.labels).min() >= 130
    assert len(train.labels) + len(test.labels) == 1797


def test_digits_are_lossless():
    from sklearn.datasets import load_digits

    originals = sorted(np.rint(load_digits().images * 255 / 16).astype(np.uint8).tolist())
    splits = open_source("digits").splits
    images = [pixels(content).tolist() for split in splits.values() for content in contents(split)]
    assert sorted(images) == originals


def cifar_files(root, monkeypatch):
    """Files as torchvision unpacks them, two images in each, with sums that fit."""
    from torchvision.datasets import CIFAR10, cifar

    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    images = {}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        images[name] = random.integers(0, 256, (2, 3072), dtype=np.uint8)
        batch = {"data": images[name], "labels": [3, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"label_names": [f"name{label}" for label in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: True)
    return images


def test_cifar_reads_torchvisions_own_files(tmp_path, monkeypatch):
    images = cifar_files(tmp_path, monkeypatch)
    source = open_source("cifar10", str(tmp_path))
    assert source.class_names[9] == "name9"
    assert source.splits["train"].labels.tolist() == [3, 9] * 5
    (image,) = contents(source.splits["test"], [1])
    expected = images["test_batch"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert pixels(image).tolist() == expected.tolist()


def test_altered_cifar_files_are_not_unpickled(tmp_path, monkeypatch):
    cifar_files(tmp_path, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("a pickle was opened"))
    with pytest.raises(ValueError, match=r"cifar-10-batches-py: .*corrupted.*leave out --from"):
        open_source("cifar10", str(tmp_path))


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    def offline(self):
        raise URLError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(CIFAR100, "download", offline)
    with pytest.raises(OSError, match=r"no route to host.*cifar-100-python with --from"):
        open_source("cifar100")


def test_cifar_reads_parquet_and_refuses_another_number_of_classes(shared_data):
    source = open_source("cifar100", str(shared_data / "cifar100-lt"))
    assert source.name == "cifar100"
    assert source.class_names[99] == "worm"
    assert len(source.splits["test"].labels) == 10_000
    with pytest.raises(ValueError, match="cifar10-lt has 10 classes and cifar100 has 100"):
        open_source("cifar100", str(shared_data / "cifar10-lt"))


def test_cifar_without_files_says_what_it_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no train.parquet .*\(and no folder cifar-100-python\)"):
        open_source("cifar100", str(tmp_path))


def test_folder_names_classes_after_the_training_folders(tmp_path):
    files = {
        "train/cat/1.png": png(1),
        "train/ant/sub/2.png": png(2),
        "train/.cache/x": b"",
        "train/ant/.DS_Store": b"",
        "test/cat/3.png": png(3),
        "notes.txt": b"",
    }
    source = open_source("folder", write_tree(tmp_path, files))
    assert source.class_names == ("ant", "cat")
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert contents(source.splits["train"]) == [png(2), png(1)]
    assert source.splits["train"].where(0) == "train/ant/sub/2.png"
    assert list(source.splits) == ["train", "test"]


def test_folder_counts_an_empty_class_and_names_foreign_ones(tmp_path):
    files = {"train/cat/1.png": png(1), "val/dog/2.png": png(2), "train/loose.png": png(3)}
    write_tree(tmp_path, files)
    (tmp_path / "train" / "bee").mkdir()
    source = open_source("folder", str(tmp_path))
    assert source.class_names == ("bee", "cat")
    assert source.splits["val"].faults == {0: "'dog' is not a class of the training split"}
    assert source.splits["train"].faults == {1: "'loose.png' is in no class folder"}


@pytest.mark.parametrize("files", [["cat/1.png"], ["train/cat/1.png"], ["test/cat/1.png"]])
def test_folder_without_a_test_part_asks_for_one(tmp_path, files):
    root = write_tree(tmp_path, dict.fromkeys(files, png(0)))
    with pytest.raises(ValueError, match=r"must hold train/<class>/<image> and test/"):
        open_source("folder", root)


@pytest.mark.parametrize(
    ("file", "rows", "counts"),
    [
        ("ImageNet_LT/ImageNet_LT_val.txt", 20_000, {20}),
        ("ImageNet_LT/ImageNet_LT_test.txt", 50_000, {50}),
        ("ImageNet_100_LT/ImageNet_100_val.txt", 2_000, {20}),
        ("iNaturalist18/iNaturalist18_val.txt", 24_426, {3}),
        ("iNaturalist18/iNaturalist18_train_first_6583.txt", 6_583, None),
        ("Places_LT/Places_LT_train.txt", 62_500, None),
        ("Places_LT/Places_LT_test.txt", 36_500, {100}),
    ],
)
def test_published_lists_parse(shared_data, file, rows, counts):
    paths, labels, faults = parse_list((shared_data / "lists" / file).read_text(), origin=file)
    assert (len(paths), len(labels), faults) == (rows, rows, {})
    if counts:
        assert set(np.bincount(labels).tolist()) == counts


def test_the_label_is_what_follows_the_last_space():
    text = "a b/c 1.jpg 7\r\nplain.jpg\t0\nx 12 -3\n"
    paths, labels, faults = parse_list(text, origin="list")
    assert paths == ["a b/c 1.jpg", "plain.jpg", "x 12"]
    assert labels.tolist() == [7, 0, -3]
    assert faults == {}


@pytest.mark.parametrize("line", ["", "a.jpg", "a.jpg one", "a.jpg 1.5", "3", "a.jpg 99999999999"])
def test_lines_that_do_not_parse_are_faults(line):
    paths, labels, faults = parse_list(f"ok.jpg 0\n{line}\nok.jpg 1\n", origin="list.txt")
    assert labels.tolist() == [0, -1, 1]
    assert len(paths) == 3
    assert list(faults) == [1]
    assert faults[1].startswith("line 2 of list.txt is not '<path> <label>': ")


def test_list_reads_images_below_its_root(tmp_path):
    files = {"im/a b.png": png(1), "im/c.png": png(2), "train.txt": b"a b.png 0\nc.png 1\n"}
    root = write_tree(tmp_path, files | {"val.txt": b"gone.png 1\n", "names": b"x y\nz\n"})
    source = open_source(
        "list",
        f"{root}/im",
        splits={"train": f"{root}/train.txt", "val": f"{root}/val.txt"},
        classes=f"{root}/names",
    )
    assert source.class_names == ("x y", "z")
    assert contents(source.splits["train"]) == [png(1), png(2)]
    assert isinstance(contents(source.splits["val"])[0], FileNotFoundError)


def test_a_name_in_a_list_that_can_be_no_image_is_a_fault_of_its_row(tmp_path):
    """Each of them, except for the missing file, ended the sharding or let it wait for ever."""
    root = write_tree(tmp_path, {"a.png": png(1), "sub/b.png": png(2), "classes": b"x"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "endless").symlink_to("/dev/zero")
    names = {
        "sub": "it is a folder, not a file",
        ".": "it is a folder, not a file",
        "a.png/b.png": "Not a directory",
        "x" * 300: "File name too long",
        "y/" * 2500: "File name too long",
        "a\0.png": "its name has a NUL character",
        "pipe": "it is a pipe, not a file",
        "endless": "it is a device, not a file",
        "loop": "Too many levels of symbolic links",
        "gone.png": "the file does not exist",
    }
    lines = "".join(f"{name} 0\n" for name in names)
    (tmp_path / "train.txt").write_text(f"a.png 0\n{lines}sub/b.png 0\n")
    source = open_source("list", root, splits={"train": f"{root}/train.txt"})
    manifest = write_shards(source, str(tmp_path / "out"), on_bad_image="skip")
    assert (manifest.splits["train"].rows, manifest.splits["train"].quarantined) == (2, 10)
    text = (tmp_path / "out" / "quarantine-train.jsonl").read_text()
    faults = [json.loads(line)["fault"] for line in text.splitlines()]
    assert all(part in fault for part, fault in zip(names.values(), faults, strict=True)), faults


def test_links_are_followed_once_and_what_is_no_file_is_named(tmp_path, links):
    for name in ("train/ant/1.png", "train/bee/1.png", "test/ant/1.png"):
        write_tree(tmp_path, {name: png(1)})
    faults = links(tmp_path / "train" / "ant")
    (tmp_path / "train" / "wasp").symlink_to(tmp_path / "train" / "bee")
    train = open_source("folder", str(tmp_path)).splits["train"]
    names = [train.where(row) for row in range(len(train.labels))]
    assert len(names) == len(set(names)) == 3 + len(faults)
    found = dict(zip(names, contents(train), strict=True))
    assert found.pop("train/wasp/1.png") == found.pop("train/bee/1.png") == png(1)
    assert found.pop("train/ant/1.png") == png(1)
    assert {name[len("train/ant/") :]: str(fault) for name, fault in found.items()} == faults


def test_list_needs_a_root_a_training_list_and_plausible_labels(tmp_path):
    (tmp_path / "list").write_text("a 500000000\n")
    splits = {"train": str(tmp_path / "list")}
    with pytest.raises(FileNotFoundError, match="gone does not exist: it must be the folder"):
        open_source("list", str(tmp_path / "gone"), splits=splits)
    with pytest.raises(ValueError, match="needs --split train=LIST"):
        open_source("list", str(tmp_path), splits={"test": splits["train"]})
    with pytest.raises(ValueError, match="label 500000000 stands for 500000001 classes"):
        open_source("list", str(tmp_path), splits=splits)
    (tmp_path / "list").write_bytes(b"\xff\xfe 0\n")
    with pytest.raises(ValueError, match=r"list is not UTF-8 text \(byte 0, in line 1\)"):
        open_source("list", str(tmp_path), splits=splits)


def test_parquet_reads_named_columns_across_files(tmp_path):
    images = [png(value) for value in range(10)]
    for name, rows in (("train-0-of-2", slice(0, 7)), ("train-1-of-2", slice(7, 10))):
        columns = {"img": images[rows], "y": [0] * len(images[rows]), "key": range(10)[rows]}
        write_table(tmp_path / f"{name}.parquet", **columns)
    write_table(tmp_path / "test.parquet", img=images[:1], y=[0], key=[5])
    options = {"image_column": "img", "label_column": "y", "id_column": "key"}
    source = open_source("parquet", str(tmp_path), **options)
    train = source.splits["train"]
    assert contents(train, [0, 5, 6, 7, 9]) == [images[row] for row in (0, 5, 6, 7, 9)]
    assert train.ids.tolist() == list(range(10))
    assert train.where(8) == f"{tmp_path}/train-1-of-2.parquet row 1"
    assert list(source.splits) == ["train", "test"]


def test_parquet_takes_class_names_from_metadata_then_from_a_file_beside(tmp_path):
    columns = {"image": [png(0)] * 2, "label": [0, 1]}
    file = write_table(tmp_path / "train.parquet", **columns)
    assert open_source("parquet", file).class_names == ("0", "1")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    assert open_source("parquet", file).class_names == ("ant", "bee")
    write_table(tmp_path / "train.parquet", {"class_names": json.dumps(["x", "y"])}, **columns)
    assert open_source("parquet", file).class_names == ("x", "y")
    assert open_source("parquet", file, classes=f"{tmp_path}/classes.txt").class_names[0] == "ant"


def test_parquet_reads_the_image_type_of_hugging_face(tmp_path):
    images = [{"bytes": png(1), "path": "a"}, {"bytes": None, "path": "b"}]
    file = write_table(tmp_path / "x.parquet", image=images, label=[0, None])
    train = open_source("parquet", splits={"train": file}).splits["train"]
    assert contents(train) == [png(1), b""]
    assert train.labels.tolist() == [0, -1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pic": [b""], "label": [0]}, "no column 'image' .found: pic, label.*--image-column"),
        ({"image": [b""], "y": [0]}, "no column 'label' .found: image, y.*--label-column"),
        ({"image": ["a.jpg"], "label": [0]}, "'image' must hold encoded images .*holds string"),
        ({"image": [b""], "label": ["cat"]}, "'label' must hold integers, and it holds string"),
        ({"image": [b""], "label": [0.5]}, "'label' must hold integers, and it holds double"),
    ],
)
def test_parquet_columns_that_do_not_fit_are_named(tmp_path, columns, message):
    file = write_table(tmp_path / "train.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        open_source("parquet", file)


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"hello, world")
    with pytest.raises(ValueError, match=r"train.parquet is not a Parquet file"):
        open_source("parquet", str(tmp_path))


def test_a_giant_row_group_is_streamed(tmp_path):
    file = tmp_path / "train.parquet"
    table = pa.table({"image": [bytes(100_000)] * 640, "label": [0] * 640})
    pq.write_table(table, file, compression="none", use_dictionary=False, write_batch_size=8)
    del table
    train = open_source("parquet", str(file)).splits["train"]
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() for _ in train.read(np.arange(640)))
    assert most - before < 32e6  # half of the row group


@pytest.mark.parametrize(
    ("name", "path", "options", "message"),
    [
        ("imagenet", "x", {}, "source 'imagenet' must be one of digits, cifar10"),
        ("folder", None, {}, "source 'folder' needs --from"),
        ("parquet", None, {}, "source 'parquet' needs --from"),
        ("digits", "x", {}, "source 'digits' comes with scikit-learn: leave out --from"),
        ("digits", None, {"classes": "y"}, "--classes are for sources 'folder', 'list', 'par"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, path, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, path, **options)


def test_absolute_paths_in_a_list_are_below_its_root_or_faults(tmp_path):
    root = write_tree(tmp_path, {"in/a.png": png(1), "in/b/c.png": png(2), "out.png": png(3)})
    names = [f"{root}/in/a.png", f"{root}/out.png", "b/c.png", "s3://other/d.png"]
    (tmp_path / "train.txt").write_text("".join(f"{name} 0\n" for name in names))
    train = open_source("list", f"{root}/in", splits={"train": f"{root}/train.txt"}).splits["train"]
    assert contents(train, [0, 2]) == [png(1), png(2)]
    fault = f"an absolute path that is not below {root}/in, which --from names"
    assert train.faults == {1: fault, 3: fault}
    assert train.where(1) == f"{root}/out.png"


@pytest.mark.parametrize("text", ["a.png,0\nb.png,1\n", "path label\n", "\n", "", "\ufeff"])
def test_a_list_in_which_no_line_parses_is_named_with_its_first_line(tmp_path, text):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=r"train.csv is no list of images: line 1 of .*train.csv"):
        open_source("list", str(tmp_path), splits={"train": f"{tmp_path}/train.csv"})


MARK = "\ufeff"


def test_byte_order_marks_are_no_part_of_names(tmp_path):
    """Also those of files that were put together of others."""
    lines = f"{MARK}a.png 0\n{MARK}{MARK}b.png 1\r\n"
    root = write_tree(tmp_path, {"a.png": png(1), "b.png": png(2), "list": lines.encode()})
    (tmp_path / "classes").write_text(f"{MARK}ant\r\n{MARK}bee\n\n")
    source = open_source("list", root, splits={"train": f"{root}/list"}, classes=f"{root}/classes")
    assert source.class_names == ("ant", "bee")
    assert contents(source.splits["train"]) == [png(1), png(2)]
    (tmp_path / "classes").write_text("ant\nbee", encoding="utf-16")
    with pytest.raises(ValueError, match=r"classes is not UTF-8 text \(byte 0, in line 1\): save"):
        open_source("list", root, splits={"train": f"{root}/list"}, classes=f"{root}/classes")


def test_lists_of_one_split_are_put_together(tmp_path):
    files = {f"{row}.png": png(row) for row in range(3)}
    root = write_tree(tmp_path, files | {"one": b"0.png 0\r1.png 1\r", "two": b"2.png 1\nx\n"})
    source = open_source("list", root, splits={"train": [f"{root}/one", f"{root}/two"]})
    assert source.splits["train"].labels.tolist() == [0, 1, 1, -1]
    assert list(source.splits["train"].faults) == [3]


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(deadline=None)
def test_any_text_is_parsed_as_a_list_with_a_fault_for_each_line_that_is_none(text):
    names, labels, faults = parse_list(text, origin="list")
    assert len(names) == len(labels)
    assert all(labels[row] == -1 for row in faults)
    again = "".join(
        f"{name} {label}\n"
        for row, (name, label) in enumerate(zip(names, labels, strict=True))
        if row not in faults
    )
    if again:
        kept = parse_list(again, origin="list")
        assert kept[0] == [name for row, name in enumerate(names) if row not in faults]
        assert kept[2] == {}


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["crane", "ant", "crane"], ["crane (0)", "ant", "crane (2)"]),
        (["a"] * 3, ["a (0)", "a (1)", "a (2)"]),
        (["a", "a", "a (0)"], ["a (0) (0)", "a (1)", "a (0)"]),
        (["a (1)", "a", "a"], ["a (1)", "a (1) (1)", "a (2)"]),
        (["a", "A", "a "], ["a (0)", "A", "a (2)"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_classes_of_one_name_are_told_apart_by_their_labels(tmp_path, names, unique):
    (tmp_path / "classes").write_text("\n".join(names))
    lines = "".join(f"x.png {label}\n" for label in range(len(names)))
    root = write_tree(tmp_path, {"x.png": png(0), "list": lines.encode()})
    source = open_source("list", root, splits={"train": f"{root}/list"}, classes=f"{root}/classes")
    assert list(source.class_names) == unique
    assert len(source.notes) == (names != unique)
