"""Tables of predictions: what is in them, and what a killed job leaves behind."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bcl_ray.storage.fence import Fence
from bcl_ray.storage.lease_request import acquire_lease
from bcl_ray.use.predict.outputs import Output
from bcl_ray.use.predict.request import PredictionOptions, PredictionRequest
from bcl_ray.use.predict.tables import Classes, table_of
from tests.odd_names import ODD_NAMES

CLASSES = Classes(["cat", "dog", "newt"], [500, 50, 5])
OPTIONS = PredictionOptions(top=2, batch_size=4, part_size=4)
REQUEST = PredictionRequest("r/best_1", "ab", "images", None, None, OPTIONS)
COLUMNS = {
    "path": np.array(["a.jpg", "b.jpg", "ü,\n.jpg"]),
    "error": np.array(["", "the image is empty", ""]),
    "classes": np.array([[2, 0], [0, 0], [0, 1]]),
    "probabilities": np.array([[0.75, 0.25], [0, 0], [0.5, 0.5]], np.float32),
}
NO_ONE = {"class_1": None, "probability_1": None, "class_2": None, "probability_2": None}


def table(**more):
    return table_of({**COLUMNS, **more}, CLASSES)


def output(tmp_path, **changes) -> Output:
    options = dataclasses.replace(OPTIONS, **changes)
    predictions = Output(str(tmp_path / "out"), dataclasses.replace(REQUEST, options=options))
    predictions.check(resume=True)
    with acquire_lease(predictions.uri, "out", print, wait=False) as lease:
        predictions.begin(lease.fence)
    return predictions


def test_a_row_has_names_probabilities_and_the_group_or_why_there_are_none():
    first, unreadable, last = table().to_pylist()
    assert first == {
        "path": "a.jpg",
        "class_1": "newt",
        "probability_1": 0.75,
        "class_2": "cat",
        "probability_2": 0.25,
        "group": "few",
        "error": None,
    }
    nothing = {"path": "b.jpg", **NO_ONE, "group": None, "error": "the image is empty"}
    assert unreadable == nothing
    assert (last["class_1"], last["group"]) == ("cat", "many")


def test_embeddings_are_a_column_of_vectors_that_comes_back_from_parquet(tmp_path):
    embedding = np.arange(6, dtype=np.float32).reshape(3, 2)
    output(tmp_path, embeddings=True).write(0, table(embedding=embedding))
    column = pq.read_table(tmp_path / "out" / "parquet")["embedding"]
    assert column.type.value_type == "float"
    assert column.to_pylist() == [[0, 1], None, [4, 5]]


def test_rows_of_shards_have_ids_and_true_classes():
    columns = {name: column for name, column in COLUMNS.items() if name != "path"}
    columns |= {"id": np.array([7, 8, 9]), "true_class": np.array(["cat", "dog", "dog"])}
    predictions = table_of(columns, CLASSES)
    assert predictions.column_names[:3] == ["id", "true_class", "class_1"]
    assert predictions["id"].to_pylist() == [7, 8, 9]


def test_parts_are_counted_from_the_first_and_leftovers_of_a_kill_go(tmp_path):
    predictions = output(tmp_path)
    assert predictions.finished_parts() == 0
    for number in (0, 1, 3):
        predictions.write(number, table())
    leftover = tmp_path / "out" / "parquet" / ".part-000002.parquet.abcd.tmp"
    leftover.write_bytes(b"half")
    assert predictions.finished_parts() == 2
    assert not leftover.exists()
    assert pq.read_table(tmp_path / "out" / "parquet").num_rows == 9


def test_csv_has_the_same_rows_without_embeddings(tmp_path):
    predictions = output(tmp_path, csv=True, embeddings=True)
    predictions.write(0, table(embedding=np.zeros((3, 2), np.float32)))
    text = (tmp_path / "out" / "csv" / "part-000000.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["path"] for row in rows] == ["a.jpg", "b.jpg", "ü,\n.jpg"]
    assert rows[0]["probability_1"] == "0.75"
    assert rows[1]["class_1"] == ""
    assert "embedding" not in rows[0]


def test_names_of_classes_are_themselves_in_csv_and_parquet(tmp_path):
    classes = Classes(ODD_NAMES, range(len(ODD_NAMES), 0, -1))
    number = len(ODD_NAMES)
    columns = {
        "path": np.array([f"{name}.jpg" for name in ODD_NAMES]),
        "error": np.array([""] * number),
        "classes": np.arange(number)[:, None],
        "probabilities": np.ones((number, 1), np.float32),
    }
    output(tmp_path, csv=True).write(0, table_of(columns, classes))
    text = (tmp_path / "out" / "csv" / "part-000000.csv").read_bytes().decode()
    for rows in (
        list(csv.DictReader(io.StringIO(text, newline=""))),
        pq.read_table(tmp_path / "out" / "parquet").to_pylist(),
    ):
        assert [row["class_1"] for row in rows] == ODD_NAMES
        assert [row["path"] for row in rows] == [f"{name}.jpg" for name in ODD_NAMES]


def test_a_summary_adds_up_parts_and_names_what_was_unreadable(tmp_path):
    predictions = output(tmp_path)
    for number in (0, 1):
        predictions.write(number, table())
    summary = predictions.finish(2)
    assert (summary.images, summary.unreadable) == (6, 2)
    assert summary.groups == {"many": 2, "few": 2}
    assert summary.confidence == {"many": 1.0, "few": 1.5}
    assert list(summary.first) == [("b.jpg", "the image is empty")] * 2
    errors = (tmp_path / "out" / "errors.csv").read_text()
    assert errors == "image,error\n" + "b.jpg,the image is empty\n" * 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["unreadable"] == 2


def test_two_tables_of_the_same_rows_are_the_same_bytes(tmp_path):
    first, second = (output(tmp_path / name, csv=True) for name in ("a", "b"))
    for predictions in (first, second):
        predictions.write(0, table())
        predictions.finish(1)
    for name in ("parquet/part-000000.parquet", "csv/part-000000.csv", "summary.json"):
        one, other = (Path(predictions.uri, name).read_bytes() for predictions in (first, second))
        assert one == other, name


def test_another_request_in_the_same_folder_is_refused_with_what_differs(tmp_path):
    output(tmp_path)
    five = dataclasses.replace(OPTIONS, top=5)
    changed_request = dataclasses.replace(REQUEST, options=five, sha256="cd")
    again = Output(str(tmp_path / "out"), changed_request)
    nobody = Fence(f"{tmp_path}/out/driver.lease", 1, "")
    for attempt in (lambda: again.check(resume=True), lambda: again.begin(nobody)):
        with pytest.raises(ValueError, match=r"\(sha256 was ab, now cd; top was 2, now 5\): cho"):
            attempt()
    moved = Output(str(tmp_path / "out"), dataclasses.replace(REQUEST, model="elsewhere/best_1"))
    moved.check(resume=True)
    with pytest.raises(ValueError, match=r"by this model: go on with --resume, or choose another"):
        moved.check(resume=False)


def test_the_number_of_images_is_known_once_all_are_listed(tmp_path):
    for name in "abcde":
        (tmp_path / "images" / f"{name}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"")
    request = dataclasses.replace(REQUEST, images=str(tmp_path / "images"))
    predictions = Output(str(tmp_path / "out"), request)
    with acquire_lease(predictions.uri, "out", print, wait=False) as lease:
        predictions.begin(lease.fence)
        counts = predictions.list_images()
        assert (next(counts), next(counts), predictions.images) == (0, 4, None)
        assert list(counts) == [5]
        assert predictions.images == 5
        assert list(predictions.list_images()) == [5]
