"""Layouts in which people and public data sets keep images: each is sharded as it lies."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.data.sources import open_source
from bcl_ray.machine.errors import UserError
from bcl_ray.storage.files import file_in, write_bytes
from tests.data.test_sources import contents, png, write_tree

TINY = {
    "wnids.txt": b"n02\nn01\n",
    "words.txt": b"n01\tgoldfish\nn02\tant\n",
    "train/n01/n01_boxes.txt": b"n01_0.JPEG\t0\t0\t9\t9\n",
    "train/n01/images/n01_0.JPEG": png(10),
    "train/n01/images/n01_1.JPEG": png(11),
    "train/n02/n02_boxes.txt": b"n02_0.JPEG\t0\t0\t9\t9\n",
    "train/n02/images/n02_0.JPEG": png(20),
    "val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t5\t5\t9\t9\n",
    "val/images/val_0.JPEG": png(30),
    "val/images/val_1.JPEG": png(31),
    "test/images/test_0.JPEG": png(40),
}


def coco(images: dict[str, list[int]], categories: dict[int, str]) -> bytes:
    """An annotation file in COCO's format: the categories of each image, by its name."""
    numbered = list(enumerate(images.items(), start=100))
    return json.dumps(
        {
            "info": {},
            "images": [{"id": number, "file_name": name} for number, (name, _) in numbered],
            "annotations": [
                {"id": number, "image_id": number, "category_id": category}
                for number, (_, of_image) in numbered
                for category in of_image
            ],
            "categories": [{"id": number, "name": name} for number, name in categories.items()],
        }
    ).encode()


# By name: the files, and what they say: classes, and the rows of each split as (class, pixel).
LAYOUTS = {
    "tiny-imagenet": (
        TINY,
        "n01 n02",
        {"train": [("n01", 10), ("n01", 11), ("n02", 20)], "val": [("n02", 30), ("n01", 31)]},
    ),
    "archive in a folder": (
        {f"tiny-imagenet-200/{name}": content for name, content in TINY.items()},
        "n01 n02",
        {"train": [("n01", 10), ("n01", 11), ("n02", 20)], "val": [("n02", 30), ("n01", 31)]},
    ),
    "inaturalist 2018": (
        {
            "train_val2018/Aves/7/a.jpg": png(1),
            "train_val2018/Aves/3/b.jpg": png(2),
            "train_val2018/Aves/3/c.jpg": png(3),
            "train2018.json": coco(
                {"train_val2018/Aves/7/a.jpg": [7], "train_val2018/Aves/3/b.jpg": [3]},
                {3: "wren", 7: "auk", 9: "none"},
            ),
            "val2018.json": coco({"train_val2018/Aves/3/c.jpg": [3]}, {3: "wren", 7: "auk"}),
        },
        "wren auk",  # in the order of ids; a category without images is no class
        {"train": [("auk", 1), ("wren", 2)], "val": [("wren", 3)]},
    ),
    "coco": (
        {
            "train2017/1.jpg": png(1),
            "train2017/2.jpg": png(2),
            "val2017/1.jpg": png(3),
            "annotations/instances_train2017.json": coco(
                {"1.jpg": [2, 2], "2.jpg": [5]}, {5: "cat", 2: "dog"}
            ),
            "annotations/instances_val2017.json": coco({"1.jpg": [5]}, {5: "cat", 2: "dog"}),
        },
        "dog cat",
        {"train": [("dog", 1), ("cat", 2)], "val": [("cat", 3)]},
    ),
    "roboflow folders": (
        {
            "README.roboflow.txt": b"hello",
            "train/cat/1.jpg": png(1),
            "train/dog/2.jpg": png(2),
            "valid/dog/3.jpg": png(3),
            "test/cat/4.jpg": png(4),
        },
        "cat dog",
        {"train": [("cat", 1), ("dog", 2)], "val": [("dog", 3)], "test": [("cat", 4)]},
    ),
    "roboflow coco": (
        {
            "train/1.jpg": png(1),
            "train/2.jpg": png(2),
            "train/_annotations.coco.json": coco(
                {"1.jpg": [1], "2.jpg": [2]}, {0: "animals", 1: "cat", 2: "dog"}
            ),
            "valid/1.jpg": png(3),
            "valid/_annotations.coco.json": coco({"1.jpg": [2]}, {0: "a", 1: "cat", 2: "dog"}),
        },
        "cat dog",
        {"train": [("cat", 1), ("dog", 2)], "val": [("dog", 3)]},
    ),
    "roboflow one-hot csv": (
        {
            "train/_classes.csv": b"filename, zebra, cat\n1.jpg, 1.0, 0.0\n2.jpg, 0, 1\n",
            "train/1.jpg": png(1),
            "train/2.jpg": png(2),
            "test/_classes.csv": b"filename, zebra, cat\n3.jpg, 1, 0\n",
            "test/3.jpg": png(3),
        },
        "zebra cat",
        {"train": [("zebra", 1), ("cat", 2)], "test": [("zebra", 3)]},
    ),
    "csv with a column of splits": (
        {
            "data.csv": b"\xef\xbb\xbfPath;Label;Split\r\nimages\\a.png;cat;train\r\n"
            b'images/b.png;"dog; big";training\r\n./images/c.png;cat;dev\r\n',
            "images/a.png": png(1),
            "images/b.png": png(2),
            "images/c.png": png(3),
        },
        "cat|dog; big",
        {"train": [("cat", 1), ("dog; big", 2)], "val": [("cat", 3)]},
    ),
    "kaggle": (
        {
            "train.csv": b"id,breed\nx1,pug\nx2,akita\n",
            "sample_submission.csv": b"id,breed\ny1,pug\n",
            "train/x1.jpg": png(1),
            "train/x2.jpg": png(2),
            "test/y1.jpg": png(3),
        },
        "akita pug",
        {"train": [("pug", 1), ("akita", 2)]},
    ),
    "kaggle's doubled folders": (
        {
            "seg_train/seg_train/sea/1.jpg": png(1),
            "seg_train/seg_train/ice/2.jpg": png(2),
            "seg_test/seg_test/sea/3.jpg": png(3),
            "seg_pred/seg_pred/4.jpg": png(4),
        },
        "ice sea",
        {"train": [("ice", 2), ("sea", 1)], "test": [("sea", 3)]},
    ),
    "kaggle's absolute paths": (
        {
            "train.csv": b"image_id,file,label\n7,/kaggle/input/set/train/a.png,10\n"
            b"8,/kaggle/input/set/train/b.png,9\n",
            "test.csv": b"file,label\n/kaggle/input/set/test/a.png,9\n",
            "train/a.png": png(1),
            "train/b.png": png(2),
            "test/a.png": png(3),
        },
        "9 10",  # numbers in their order
        {"train": [("10", 1), ("9", 2)], "test": [("9", 3)]},
    ),
    "metadata of an imagefolder": (
        {
            "train/metadata.jsonl": b'{"file_name": "a.png", "label": "x"}\n'
            b'{"file_name": "b.png", "label": "y"}\n',
            "train/a.png": png(1),
            "train/b.png": png(2),
            "test/metadata.csv": b"file_name,label\nc.png,y\n",
            "test/c.png": png(3),
        },
        "x y",
        {"train": [("x", 1), ("y", 2)], "test": [("y", 3)]},
    ),
    "json records": (
        {
            "train.json": b'[{"image": "a", "class": "x"}, {"image": "b", "class": "y"}]',
            "val.json": b'[{"image": "c", "class": "y"}]',
            "pictures/a.webp": png(1),
            "pictures/b.webp": png(2),
            "pictures/c.webp": png(3),
        },
        "x y",
        {"train": [("x", 1), ("y", 2)], "val": [("y", 3)]},
    ),
}


def pixel(content: bytes) -> int:
    return next(value for value in range(256) if png(value) == content)


def rows(source, split) -> list:
    assert not split.faults
    names = [source.class_names[label] for label in split.labels]
    return [(name, pixel(c)) for name, c in zip(names, contents(split), strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_images_classes_and_splits_that_it_means(tmp_path, layout):
    files, classes, splits = LAYOUTS[layout]
    source = open_source("folder", write_tree(tmp_path, files))
    assert source.class_names == tuple(classes.split("|" if "|" in classes else None))
    assert {name: rows(source, split) for name, split in source.splits.items()} == splits


def test_names_of_a_validation_split_are_one_and_other_folders_are_named(tmp_path):
    files = {
        "train/cat/1.png": png(1),
        "dev/cat/2.png": png(2),
        "Validation/cat/3.png": png(3),
        "extra/cat/4.png": png(4),
        "train_masks/cat/1.png": png(5),
    }
    source = open_source("folder", write_tree(tmp_path, files))
    assert list(source.splits) == ["train", "val"]
    assert sorted(pixel(content) for content in contents(source.splits["val"])) == [2, 3]
    assert "Validation/ and dev/ are one split, 'val'" in source.notes
    (left_out,) = [note for note in source.notes if note.startswith("left out")]
    assert "extra/ (1 images), train_masks/ (1 images)" in left_out


def test_images_are_known_by_extension_or_content_and_other_files_are_counted(tmp_path):
    files = {
        "train/cat/1.PNG": png(1),
        "train/cat/0a1b2c": png(2),
        "train/cat/3.dat": png(3),
        "train/cat/4.xml": b"<annotation/>",
        "train/cat/5.xml": b"<annotation/>",
        "train/cat/notes.txt": b"BMW is no bitmap",
        "train/cat/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "train/cat/6.unknown": b"BMW is no bitmap",
        "train/cat/.DS_Store": b"",
        "test/cat/broken.jpg": b"oops",
    }
    source = open_source("folder", write_tree(tmp_path, files))
    assert {pixel(content) for content in contents(source.splits["train"])} == {1, 2, 3}
    assert contents(source.splits["test"]) == [b"oops"], "its check says that it does not decode"
    note = "left out, because they are no images: 2 .xml, 1 .db, 1 .txt, 1 .unknown"
    assert [sorted(text.split(", ")) for text in source.notes] == [sorted(note.split(", "))]


def test_image_folders_of_each_split_may_have_several_roots(tmp_path):
    files = {
        "disk1/photos/cat/1.png": png(1),
        "disk2/more/dog/sub/2.png": png(2),
        "disk2/more/cat/3.png": png(3),
        "else/where/dog/4.png": png(4),
        "else/where/loose.png": png(5),
    }
    root = write_tree(tmp_path, files)
    splits = {"train": [f"{root}/disk1/photos", f"{root}/disk2/more"], "test": f"{root}/else/where"}
    source = open_source("folder", splits=splits)
    assert source.class_names == ("cat", "dog")
    assert rows(source, source.splits["train"]) == [("cat", 1), ("cat", 3), ("dog", 2)]
    assert source.splits["test"].labels.tolist() == [1, -1]
    assert source.splits["test"].faults == {1: "'loose.png' is in no class folder"}
    assert source.splits["train"].where(1) == "disk2/more/cat/3.png"


def test_the_order_of_classes_can_be_given_by_name_or_by_number(tmp_path):
    files = {"train/b/1.png": png(1), "train/a/2.png": png(2), "test/a/3.png": png(3)}
    root = write_tree(tmp_path / "named", files | {"names": b"b\na\n"})
    source = open_source("folder", root, classes=f"{root}/names")
    assert source.class_names == ("b", "a")
    assert source.splits["test"].labels.tolist() == [1]
    files = {"train/1/1.png": png(1), "train/0/2.png": png(2), "test/1/3.png": png(3)}
    root = write_tree(tmp_path / "numbered", files | {"names": b"zero\none\n"})
    source = open_source("folder", root, classes=f"{root}/names")
    assert rows(source, source.splits["test"]) == [("one", 3)]
    (tmp_path / "named" / "names").write_text("b\na\nb\n")
    with pytest.raises(ValueError, match=r"names has several lines 'b', so that the labels"):
        open_source("folder", str(tmp_path / "named"), classes=f"{tmp_path}/named/names")
    (tmp_path / "named" / "names").write_text("b\n")
    with pytest.raises(ValueError, match=r"names has no line 'a', and images have it"):
        open_source("folder", str(tmp_path / "named"), classes=f"{tmp_path}/named/names")
    (tmp_path / "numbered" / "names").write_text("zero\n\none\n")
    with pytest.raises(ValueError, match=r"line 2 of .*names is empty"):
        open_source("folder", root, classes=f"{root}/names")


def test_an_image_of_several_classes_and_one_that_is_missing_are_faults(tmp_path):
    files = {
        "train/1.jpg": png(1),
        "train/2.jpg": png(2),
        "train/a.json": coco({"1.jpg": [1, 2], "2.jpg": [1], "gone.jpg": [2]}, {1: "x", 2: "y"}),
        "val/3.jpg": png(3),
        "val/a.json": coco({"3.jpg": [4]}, {4: "z"}),
    }
    source = open_source("folder", write_tree(tmp_path, files))
    train = source.splits["train"]
    assert train.faults == {0: "it has annotations of 2 classes (x, y)"}
    assert train.labels.tolist() == [-1, 0, 1]
    assert isinstance(contents(train)[2], FileNotFoundError)
    assert train.where(2) == "train/gone.jpg"
    assert source.splits["val"].faults == {0: "'z' is not a class of the training split"}


def test_a_column_that_is_asked_for_is_the_one_that_is_read(tmp_path):
    """Not another one whose name is known, too: the classes were wrong in silence."""
    files = {
        "data.csv": b"filename,path,label,Scientific Name,species\n"
        b"2.png,1.png,bird,Turdus,wren\n1.png,2.png,bird,Alca,auk\n",
        "1.png": png(1),
        "2.png": png(2),
    }
    root = write_tree(tmp_path, files)
    for column, classes in (("species", ["wren", "auk"]), ("Scientific Name", ["Turdus", "Alca"])):
        source = open_source("folder", root, image_column="path", label_column=column)
        assert rows(source, source.splits["train"]) == list(zip(classes, (1, 2), strict=True))
    assert open_source("folder", root).class_names == ("bird",), "the first that is known"
    with pytest.raises(ValueError, match="whose columns --image-column and --label-column name"):
        open_source("folder", root, label_column="breed")


def test_rows_without_a_split_a_class_or_an_image_are_as_if_there_were_no_such_columns(tmp_path):
    records = [
        {"image": "1.png", "label": "x", "split": None},
        {"image": "2.png", "label": "y"},
        {"image": "3.png", "label": "y", "split": "test"},
        {"image": "4.png"},
        {"label": "x"},
        {"image": "5.png", "label": None},
    ]
    images = {f"{number}.png": png(number) for number in range(1, 6)}
    json_tree = write_tree(tmp_path / "j", images | {"a.json": json.dumps(records).encode()})
    table = b"image,label,split\n1.png,x\n2.png,y,\n3.png,y,test\n4.png\n,x,train\n5.png,,train\n"
    for root in (json_tree, write_tree(tmp_path / "c", images | {"a.csv": table})):
        source = open_source("folder", root)
        assert list(source.splits) == ["train", "test"]
        assert rows(source, source.splits["train"]) == [("x", 1), ("y", 2)]
        assert rows(source, source.splits["test"]) == [("y", 3)]


def test_an_image_that_may_be_one_of_two_is_a_fault(tmp_path):
    files = {"train.csv": b"file,label\n1.png,a\ny/2.png,b\n", "x/1.png": png(1)}
    files |= {"y/1.png": png(2), "y/2.png": png(3), "x/y/3.png": png(4), "test/1.png": png(5)}
    train = open_source("folder", write_tree(tmp_path, files)).splits["train"]
    assert train.faults == {0: "'1.png' may be test/1.png or x/1.png"}
    assert train.labels.tolist() == [-1, 0]


def test_a_class_may_be_called_like_a_split(tmp_path):
    rows_of_file = b"path,label,split\na/train/1.png,train,train\na/test/2.png,test,test\n"
    files = {"all.csv": rows_of_file + b"a/test/3.png,test,train\n", "a/train/1.png": png(1)}
    files |= {"a/test/2.png": png(2), "a/test/3.png": png(3)}
    source = open_source("folder", write_tree(tmp_path, files))
    assert rows(source, source.splits["train"]) == [("train", 1), ("test", 3)]
    assert rows(source, source.splits["test"]) == [("test", 2)]


def test_boxes_of_one_class_are_one_image(tmp_path):
    files = {"train/_annotations.csv": b"filename,class,xmin\na.png,cat,0\na.png,cat,7\n"}
    files |= {"train/a.png": png(1), "README.txt": b"caf\xe9"}
    source = open_source("folder", write_tree(tmp_path, files))
    assert rows(source, source.splits["train"]) == [("cat", 1)]
    assert any("README.txt is not UTF-8 text" in note for note in source.notes)


KEYS = "images annotations categories id image_id category_id file_name label name split"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["1.png", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS.split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
TEXT = st.text(st.sampled_from('image,label;1.png\t \r\n"0x\0\ufeff{}[]:'), max_size=80)


@given(
    content=TEXT | JSON.map(json.dumps) | st.binary(max_size=30),
    suffix=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]),
)
@settings(deadline=None, max_examples=300)
def test_whatever_a_file_beside_the_images_holds_is_labels_or_is_said(content, suffix):
    """It may be about something else, and is never an error that a person cannot understand."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "1.png").write_bytes(png(1))
        data = content if isinstance(content, bytes) else content.encode()
        (root / f"a.{suffix}").write_bytes(data)
        try:
            source = open_source("folder", folder)
        except UserError:
            return
        labelled = [name for split in source.splits.values() for name in split.labels]
        assert labelled, "some row names the image"


def test_two_files_that_label_the_same_images_are_refused(tmp_path):
    files = {
        "images/1.jpg": png(1),
        "train.csv": b"file,label\n1.jpg,x\n",
        "train_v2.csv": b"file,label\n1.jpg,y\n",
    }
    with pytest.raises(
        ValueError, match=r"both train.csv and train_v2.csv say which class images/"
    ):
        open_source("folder", write_tree(tmp_path, files))


def test_a_file_that_cannot_be_read_is_said_and_stops_only_what_needs_it(tmp_path):
    files = {"train/1.jpg": png(1), "train.json": b'{"images": [{"id": 1}], "annotations": []}'}
    root = write_tree(tmp_path, files)
    with pytest.raises(ValueError, match=r"train.json cannot be read \(KeyError: 'file_name'\)"):
        open_source("folder", root)
    (tmp_path / "train.csv").write_text("file,label\n1.jpg,x\n")
    assert any("train.json cannot be read" in note for note in open_source("folder", root).notes)


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    write_tree(tmp_path, {"train/cat/1.png": png(1), "test/cat/2.png": png(2)})
    (tmp_path / os.fsdecode(b"train/cat/caf\xe9.png")).write_bytes(png(3))
    with pytest.raises(
        ValueError, match=r"cat holds a name that is not UTF-8, b'caf\\xe9.png': rename"
    ):
        open_source("folder", str(tmp_path))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("train/data-00000-of-00001.arrow", "huggingface"),
        ("train-00000.parquet", "parquet"),
        ("train-000.tar", "webdataset"),
    ],
)
def test_files_of_another_source_are_recognised(tmp_path, file, source):
    with pytest.raises(ValueError, match=f"holds no images in files, but .* use source '{source}'"):
        open_source("folder", write_tree(tmp_path, {file: b"x"}))


def test_numbers_of_rows_do_not_depend_on_what_is_no_image(tmp_path):
    """Ids are row numbers, so that shards stay the same when a text file is added."""
    files = {f"{split}/c/{row}.png": png(row) for split in ("train", "test") for row in range(9)}
    before = open_source("folder", write_tree(tmp_path, files)).splits["train"]
    write_tree(tmp_path, {"train/c/5.txt": b"hello"})
    after = open_source("folder", str(tmp_path)).splits["train"]
    assert contents(before) == contents(after)
    assert np.array_equal(before.labels, after.labels)


@pytest.mark.parametrize("s3_server", ["swift"], indirect=True)
def test_folders_in_a_bucket_are_read_like_others(bucket):
    files = {"set 1/train/c #1/1.png": png(1), "set 1/train/c #1/2": png(2)}
    files |= {
        "set 1/train/d/3.png": png(3),
        "set 1/train/d/4.txt": b"",
        "set 1/dev/d/5.png": png(5),
    }
    for name, content in files.items():
        write_bytes(file_in(f"{bucket.uri}/in", name), content)
    source = open_source("folder", f"{bucket.uri}/in")
    assert rows(source, source.splits["train"]) == [("c #1", 1), ("c #1", 2), ("d", 3)]
    assert rows(source, source.splits["val"]) == [("d", 5)]
    root = f"{bucket.uri}/in/set%201"
    source = open_source("folder", splits={"train": f"{root}/train", "test": f"{root}/dev"})
    assert rows(source, source.splits["test"]) == [("d", 5)]
