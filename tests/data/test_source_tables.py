"""Tables and tars: Parquet, data sets of Hugging Face, WebDataset."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from bcl_ray.data.shards import verify_shards, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.machine.parallel import run_in_processes
from bcl_ray.storage import files
from bcl_ray.storage.files import filesystems
from tests.data.test_shards import files_of, read_split
from tests.data.test_sources import contents, png, write_table, write_tree


def hub_metadata(names: list, label: str = "label", image: str = "image") -> dict:
    """Metadata of tables as the package `datasets` 5.2 writes it."""
    features = {
        image: {"_type": "Image"},
        label: {"names": names, "_type": "ClassLabel"},
        "other": {"dtype": "int64", "_type": "Value"},
    }
    return {"huggingface": json.dumps({"info": {"features": features}})}


def own_metadata(names: list) -> dict:
    return {"class_names": json.dumps(names)}


def hub_rows(labels: list, first: int = 0) -> dict:
    images = [{"bytes": png(first + row), "path": None} for row in range(len(labels))]
    return {"image": images, "label": labels}


def write_arrow(path, table: pa.Table, new=pa.ipc.new_stream) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def save_to_disk(folder, labels, names, first: int = 0, files: int = 2, split=None) -> None:
    """What `Dataset.save_to_disk` of `datasets` 5.2 leaves, as far as it is read."""
    table = pa.table(hub_rows(labels, first)).replace_schema_metadata(hub_metadata(names))
    step = -(-len(labels) // files)
    listed = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for number, name in enumerate(listed):
        write_arrow(folder / name, table.slice(number * step, step))
    state = {"_data_files": [{"filename": name} for name in listed], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    features = json.loads(hub_metadata(names)["huggingface"])["info"]["features"]
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def named(source, split: str) -> list[str]:
    return [source.class_names[label] for label in source.splits[split].labels]


@pytest.fixture
def saved(tmp_path):
    """A data set dictionary, whose validation split has its classes in another order."""
    folder = tmp_path / "saved"
    save_to_disk(folder / "train", [0, 1, 2] * 4, ["ant", "bee", "cat"], files=3)
    save_to_disk(folder / "dev", [2, 0, 1, 1], ["cat", "ant", "bee"], first=100)
    save_to_disk(folder / "test", [-1] * 4, ["bee", "ant", "cat"])
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "dev", "test"]}')
    return folder


def test_a_saved_data_set_has_its_classes_by_name_in_every_split(saved):
    source = open_source("huggingface", str(saved))
    assert source.class_names == ("ant", "bee", "cat")
    assert list(source.splits) == ["train", "validation"]
    assert named(source, "train") == ["ant", "bee", "cat"] * 4
    assert named(source, "validation") == ["bee", "cat", "ant", "ant"]
    assert contents(source.splits["train"], [0, 3, 5, 11]) == [png(r) for r in (0, 3, 5, 11)]
    assert contents(source.splits["validation"]) == [png(row) for row in range(100, 104)]
    assert source.notes == ("split 'test' is left out, because no image in it has a label",)


def test_splits_that_mean_the_same_are_put_together_and_said(saved):
    save_to_disk(saved / "validation", [0, 1], ["ant", "bee", "cat"], first=200)
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "dev", "validation"]}')
    source = open_source("huggingface", str(saved))
    assert named(source, "validation") == ["bee", "cat", "ant", "ant", "ant", "bee"]
    text = "dev, validation are one split, validation: --split NAME=FILE takes some of them"
    assert source.notes == (text,)


def test_a_saved_data_set_of_one_split_and_older_files_are_read(tmp_path):
    save_to_disk(tmp_path, [0, 1] * 5, ["x", "y"], split="train")
    plain = pa.table(hub_rows([0, 1] * 5))  # the classes are only in dataset_info.json
    write_arrow(tmp_path / "data-00000-of-00002.arrow", plain.slice(0, 5), pa.ipc.new_file)
    write_arrow(tmp_path / "data-00001-of-00002.arrow", plain.slice(5, 5))
    source = open_source("huggingface", str(tmp_path))
    assert source.class_names == ("x", "y")
    assert contents(source.splits["train"]) == [png(row) for row in range(10)]
    state = json.loads((tmp_path / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state.json: only some rows are meant; save it after"):
        open_source("huggingface", str(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001-9f3b.parquet", "data/validation-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
        ("train.parquet", "valid.parquet"),
    ],
)
def test_the_hubs_parquet_files_are_found_with_their_columns_and_names(tmp_path, names):
    metadata = hub_metadata(["ant", "bee"], "fine_label", "img")
    for file, first in zip(names, (0, 50), strict=True):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        rows = hub_rows([0, 1, 1], first)
        columns = {"img": rows["image"], "fine_label": rows["label"], "other": [9, 9, 9]}
        write_table(tmp_path / file, metadata, **columns)
    source = open_source("huggingface", str(tmp_path))
    assert named(source, "train") == ["ant", "bee", "bee"]
    assert contents(source.splits["validation"]) == [png(50), png(51), png(52)]


def test_several_data_sets_in_one_folder_are_named(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "train.parquet", **hub_rows([0]))
    with pytest.raises(ValueError, match=r"holds several \(a, b\): name one of the folders"):
        open_source("huggingface", str(tmp_path))
    with pytest.raises(ValueError, match="and it holds none"):
        open_source("huggingface", str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("own", "labels", "expected"),
    [
        (["cat", "ant", "bee"], [0, 1, 2], ["cat", "ant", "bee"]),
        (["bee", "ant"], [0, 1, -1], ["bee", "ant", None]),
        (["ant", "bee"], [1, 0, 2], ["bee", "ant", None]),
        (["ant", "dog", "cat"], [0, 1, 2], ["ant", None, "cat"]),
        (["ant", "bee", "cat", "dog"], [2, 3, 0], ["cat", None, "ant"]),
    ],
)
@pytest.mark.parametrize(
    "metadata", [hub_metadata, lambda names: {"class_names": json.dumps(names)}]
)
def test_labels_of_every_file_are_read_by_the_names_in_its_metadata(
    tmp_path, own, labels, expected, metadata
):
    """Labels that were swapped were scored in silence."""
    first = metadata(["ant", "bee", "cat"])
    train = write_table(tmp_path / "train.parquet", first, **hub_rows([0, 1, 2]))
    test = write_table(tmp_path / "test.parquet", metadata(own), **hub_rows(labels))
    source = open_source("parquet", splits={"train": train, "test": test})
    found = source.splits["test"].labels.tolist()
    names = [source.class_names[label] if 0 <= label < 3 else None for label in found]
    assert names == expected


def test_files_with_other_classes_of_one_name_are_refused(tmp_path):
    train = write_table(tmp_path / "a.parquet", hub_metadata(["x", "x", "y"]), **hub_rows([0]))
    test = write_table(tmp_path / "b.parquet", hub_metadata(["y", "x", "x"]), **hub_rows([0]))
    with pytest.raises(ValueError, match=r"some have the same name .*: it is not clear which"):
        open_source("parquet", splits={"train": train, "test": test})


@pytest.mark.parametrize(
    "names",
    [b"ant,bee", b"3", b'{"0": "ant"}', b'"ant"', b"null", b"[]", b"[[1]]", b"\xff", b"[null]"],
)
def test_class_names_in_the_metadata_that_are_no_list_are_refused(tmp_path, names):
    file = write_table(tmp_path / "train.parquet", {"class_names": names}, **hub_rows([0, 1]))
    with pytest.raises(ValueError, match=r"train.parquet: class_names in its metadata must be a"):
        open_source("parquet", file)


@pytest.mark.parametrize("content", [b"null", b"3", b"{}", b'{"info": {"features": [1]}}', b"\xff"])
def test_metadata_of_others_that_says_nothing_is_no_hindrance(tmp_path, content):
    file = write_table(tmp_path / "train.parquet", {"huggingface": content}, **hub_rows([0, 1]))
    assert open_source("parquet", file).class_names == ("0", "1")


def test_a_sorted_table_does_not_bias_a_profile(tmp_path):
    """What is kept is drawn with the seed: the brightness of kept images has the mean of all."""
    value = np.tile(np.arange(100), 2)  # in each class from dark to bright
    images = [png(v) for v in value.tolist()]
    file = write_table(tmp_path / "train.parquet", image=images, label=np.repeat([0, 1], 100))
    means = []
    for seed in range(3):
        source = open_source("parquet", file)
        options = {"profile": "step", "imbalance_factor": 5, "seed": seed}
        target = tmp_path / str(seed)
        manifest = write_shards(source, str(target), **options)
        assert manifest.splits["train"].class_counts == (100, 20)
        ids = read_split(target, manifest.splits["train"])["id"].to_numpy()
        means.append(value[ids[ids >= 100]].mean())
    # The mean of 20 of 100 has a deviation of 5.8; that of the first 20 is 9.5.
    assert np.abs(np.array(means) - 49.5).max() < 20
    assert len(set(means)) == 3


def write_tar(path, *members: tuple[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_tars_have_samples_of_images_with_cls_or_json(tmp_path):
    write_tar(
        tmp_path / "set-train-000000.tar",
        ("a.b/s0.cls", b"\xef\xbb\xbf1\n"),
        ("a.b/s0.jpg", png(0)),
        ("._s0.jpg", b"from macOS"),
        ("s1.jpg", png(1)),
        ("s1.json", b'{"caption": "x", "label": 0}'),
        ("s2.mask.png", png(99)),
        ("s2.png", png(2)),
        ("s2.cls", b"0"),
    )
    write_tar(tmp_path / "set-train-000001.tar", ("s3.jpg", png(3)), ("s4.txt", b"no image"))
    write_tar(tmp_path / "val.tar", ("x.webp", png(4)), ("x.cls", b"1"))
    source = open_source("webdataset", str(tmp_path))
    train = source.splits["train"]
    assert list(source.splits) == ["train", "val"]
    assert source.class_names == ("0", "1")
    assert train.labels.tolist() == [1, 0, 0, -1]
    assert train.faults == {3: "its sample has no class: a .cls, or a .json with a field 'label'"}
    assert contents(train, [3, 0, 2, 1]) == [png(3), png(0), png(2), png(1)]
    assert train.where(3) == f"{tmp_path}/set-train-000001.tar: s3.jpg"
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    assert open_source("webdataset", str(tmp_path)).class_names == ("no", "yes")


def test_classes_of_tars_may_be_names_and_tars_be_numbered_in_braces(tmp_path):
    for number, name in enumerate(("dog", "cat", "dog")):
        members = [(f"{number}.jpg", png(number)), (f"{number}.cls", name.encode())]
        write_tar(tmp_path / f"part-{number:03d}.tar", *members)
    splits = {"train": f"{tmp_path}/part-{{000..001}}.tar", "test": f"{tmp_path}/part-002.tar"}
    source = open_source("webdataset", splits=splits)
    assert source.class_names == ("cat", "dog")
    assert named(source, "train") == ["dog", "cat"]
    assert named(source, "test") == ["dog"]
    with pytest.raises(ValueError, match=r"name of part-000.tar has no split.*--split train=TAR"):
        open_source("webdataset", str(tmp_path))


def test_tars_that_are_cut_or_compressed_are_named(tmp_path):
    path = write_tar(tmp_path / "train.tar", ("a.jpg", bytes(5000)), ("a.cls", b"0"))
    content = (tmp_path / "train.tar").read_bytes()
    for size in (3000, 513 + 512):
        (tmp_path / "train.tar").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"train.tar is no whole, uncompressed tar"):
            open_source("webdataset", path)
    write_tar(tmp_path / "train.tar", ("a.jpg", png(0)), mode="w:gz")
    with pytest.raises(ValueError, match=r"train.tar is no whole, uncompressed tar"):
        open_source("webdataset", path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["huggingface", "webdataset"])
def test_any_number_of_processes_writes_the_same_bytes(saved, tmp_path, kind):
    rows = [(f"{row}.png", png(row)) for row in range(40)]
    numbers = [(f"{row}.cls", str(row % 2).encode()) for row in range(40)]
    pairs = [pair for both in zip(rows, numbers, strict=True) for pair in both]
    write_tar(tmp_path / "train.tar", *pairs)
    path = {"huggingface": str(saved), "webdataset": f"{tmp_path}/train.tar"}[kind]
    for count in (1, 2):
        with run_in_processes(count) as run:
            write_shards(open_source(kind, path), str(tmp_path / str(count)), run=run)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_what_macos_leaves_beside_shards_is_not_theirs(tmp_path):
    """Such files made `verify` fail, were taken for shards of others, and were deleted."""
    names = ("._train-00000.parquet", ".DS_Store", "._quarantine-train.jsonl", "._manifest.json")
    for name in names:
        (tmp_path / name).write_bytes(b"Mac OS X")
    write_shards(open_source("digits"), str(tmp_path))
    assert verify_shards(str(tmp_path)) == []
    assert all((tmp_path / name).exists() for name in names)


def test_hidden_files_are_no_tables(tmp_path):
    write_table(tmp_path / "train.parquet", **hub_rows([0, 1]))
    (tmp_path / "._train.parquet").write_bytes(b"Mac OS X")
    for kind in ("parquet", "huggingface"):
        assert len(open_source(kind, str(tmp_path)).splits["train"].labels) == 2


@pytest.fixture
def with_options(tmp_path, monkeypatch):
    """A store for URIs of test://, which have options, as those of S3 may."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    local = files.resolve

    def resolve(uri):
        if not uri.startswith("test://b/"):
            return local(uri)
        assert uri.endswith("?server=http://h:9"), "without its options, it is another store's"
        return store, uri.removeprefix("test://b/").removesuffix("?server=http://h:9")

    for module in (files, filesystems):
        monkeypatch.setattr(module, "resolve", resolve)
    return lambda path: f"test://b/{path}?server=http://h:9"


def test_the_names_of_classes_are_beside_a_table_whose_uri_has_options(tmp_path, with_options):
    (tmp_path / "d").mkdir()
    write_table(tmp_path / "d/t.parquet", **hub_rows([0, 1]))
    (tmp_path / "d/classes.txt").write_text("ant\nbee\n")
    splits = {"train": with_options("d/t.parquet")}
    assert open_source("parquet", splits=splits).class_names == ("ant", "bee")
    assert open_source("parquet", splits["train"]).class_names == ("ant", "bee")


def test_an_arrow_file_whose_uri_has_options_is_one(tmp_path, with_options):
    save_to_disk(tmp_path, [0, 1], ["ant", "bee"], files=1)
    write_arrow(tmp_path / "data.arrow", pa.table(hub_rows([0, 1])))
    source = open_source("huggingface", splits={"train": with_options("data.arrow")})
    assert source.class_names == ("ant", "bee"), "as dataset_info.json says"
    assert contents(source.splits["train"]) == [png(0), png(1)]


def test_a_tar_whose_uri_has_options_is_one(tmp_path, with_options):
    (tmp_path / "d").mkdir()
    write_tar(tmp_path / "d/a.tar", ("1.jpg", png(1)), ("1.cls", b"0"))
    source = open_source("webdataset", with_options("d/a.tar"))
    assert contents(source.splits["train"]) == [png(1)]


def test_folders_and_lists_whose_uris_have_options_name_their_images(tmp_path, with_options):
    write_tree(
        tmp_path, {f"d/{name}.png": png(7) for name in ("train/x/1", "train/y/2", "test/x/3")}
    )
    splits = {name: with_options(f"d/{name}") for name in ("train", "test")}
    source = open_source("folder", splits=splits)
    assert [contents(split) for split in source.splits.values()] == [[png(7)] * 2, [png(7)]]
    other = splits | {"test": str(tmp_path / "d/test")}
    with pytest.raises(ValueError, match="must be on one disk, or in one bucket"):
        open_source("folder", splits=other)
    (tmp_path / "list").write_text("test://b/d/train/x/1.png 0\ntest/x/3.png 0\n")
    listed = open_source("list", with_options("d"), splits={"train": str(tmp_path / "list")})
    assert contents(listed.splits["train"]) == [png(7)] * 2
    assert not listed.splits["train"].faults


def test_a_file_that_is_missing_beside_a_table_is_not_the_table(tmp_path, monkeypatch):
    save_to_disk(tmp_path, [0, 1], ["ant", "bee"], files=1)
    beside = tmp_path / "dataset_info.json"

    def read(uri):
        raise FileNotFoundError(f"{uri} does not exist: check its spelling")

    monkeypatch.setattr(files, "read_bytes", read)
    plain = tmp_path / "data.arrow"
    write_arrow(plain, pa.table(hub_rows([0, 1])))
    with pytest.raises(FileNotFoundError, match=f"^{beside} does not exist"):
        open_source("huggingface", splits={"train": str(plain)})
