"""The figures, the table and the report of a run, from fixed predictions."""

import csv
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import markupsafe
import numpy as np
import pytest

from bcl_ray.data.decode import decode
from bcl_ray.data.shards import find_images, read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.report import summary
from bcl_ray.report.figure_table import FIGURES, draw_figures
from bcl_ray.report.results import MAX_MISTAKES, MAX_OF_CLASS, Results, class_table, find_mistakes
from bcl_ray.runs.findings import Findings
from tests.odd_names import ODD_NAMES

METRICS = {"accuracy/all": 50.0, "accuracy/few": 25.0, "calibration/temperature": 1.5}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return folder


@pytest.fixture(scope="module")
def results(digits) -> Results:
    """Results in which every image of the two smallest classes is predicted as a zero."""
    manifest = read_manifest(digits)
    split = manifest.splits["test"]
    labels = np.repeat(np.arange(10), split.class_counts)
    ids = ids_by_label(digits, split)
    order = np.argsort(ids)
    ids, labels = ids[order], labels[order]
    confidence = np.linspace(0.2, 0.99, len(ids)).astype(np.float32)
    found = Findings(
        ids=ids,
        labels=labels,
        predicted=np.where(labels >= 8, 0, labels),
        second=labels,
        confidence=confidence,
        classes=np.arange(10),
        embeddings=np.eye(10, dtype=np.float32),
        features=np.eye(10, dtype=np.float32),
        about={
            "data": digits,
            "split": "test",
            "fingerprint": manifest.fingerprint,
            "metrics": METRICS,
            "bins": [[24, 12.0, 12]] * 15,
            "calibrated_bins": None,
        },
    )
    history = [{"epoch": float(epoch), **METRICS, "geometry/nc1": 1.0} for epoch in range(3)]
    counts = np.array(manifest.splits["train"].class_counts)
    return Results("<b>run", digits_lt(), list(manifest.class_names), counts, history, found)


def ids_by_label(folder: str, split) -> np.ndarray:
    import pyarrow.parquet as pq

    rows = [pq.read_table(f"{folder}/{shard.file}").to_pydict() for shard in split.shards]
    pairs = [pair for row in rows for pair in zip(row["label"], row["id"], strict=True)]
    return np.array([number for _, number in sorted(pairs)])


@pytest.fixture(scope="module")
def written(results, tmp_path_factory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("report")
    return folder, summary.write(results, folder)


def test_everything_is_written_and_the_report_holds_it_all(written):
    folder, files = written
    names = {file.relative_to(folder).as_posix() for file in files}
    figures = {"classes", "confusion", "embedding_cosines", "embedding_geometry", "epochs"}
    figures |= {"feature_cosines", "mistakes", "reliability"}
    assert names == {
        *(f"figures/{name}.png" for name in figures),
        "classes.csv",
        "classes.json",
        "report.html",
    }
    assert all(file.stat().st_size for file in files)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(figures)
    assert "<b>run" not in page
    assert "optim.global_batch_size" in page
    assert "<td>views.classification.crop</td><td>padded</td>" in page
    assert "&#39;crop&#39;" not in page
    assert "&#x27;crop&#x27;" not in page, "no dictionary stands in a cell"
    for shown in ("50.00", "1.50", "Measured on 360 images"):
        assert shown in page


def test_every_figure_has_a_name_of_its_own_and_a_line_that_describes_it():
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert all(figure.text and "\n" not in figure.text for figure in FIGURES)


def test_the_table_says_of_each_class_what_it_is_taken_for(results, written):
    folder, _ = written
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["class"] for row in rows] == results.class_names
    last, first = rows[-1], rows[0]
    assert (last["training_images"], last["group"]) == ("2", "few")
    assert (last["accuracy"], last["taken_for"], last["how_often"]) == ("0.00", "0", "100.00")
    eights_and_nines = int(rows[8]["test_images"]) + int(rows[9]["test_images"])
    assert int(first["others_taken_for_it"]) == eights_and_nines
    assert (first["accuracy"], first["taken_for"]) == ("100.00", "")
    table = json.loads((folder / "classes.json").read_text())  # as MLflow's load_table wants it
    assert len(table["data"]) == 10
    assert len(table["columns"]) == len(table["data"][0])


@pytest.mark.slow
def test_names_of_classes_are_themselves_in_every_file(results, tmp_path):
    for names in (ODD_NAMES[:10], ODD_NAMES[10:20], ODD_NAMES[-10:]):
        summary.write(replace(results, class_names=names), tmp_path)
        rows = list(csv.DictReader((tmp_path / "classes.csv").open(newline="")))
        assert [row["class"] for row in rows] == names
        assert {row["taken_for"] for row in rows} == {"", names[0]}
        table = json.loads((tmp_path / "classes.json").read_text())
        assert [row[0] for row in table["data"]] == names
        page = (tmp_path / "report.html").read_bytes().decode()
        assert all(f"<td>{markupsafe.escape(name)}</td>" in page for name in names)
        assert "<script>alert" not in page


def test_a_class_without_test_images_has_no_accuracy():
    numbers = np.array([0, 0, 2])
    found = Findings(
        np.arange(3), numbers, np.array([0, 1, 2]), numbers, np.full(3, 0.5, np.float32),
        np.arange(3), np.zeros((3, 2)), np.zeros((3, 0)),
    )  # fmt: skip
    counts = np.array([200, 50, 5])
    table = class_table(Results("r", digits_lt(), list("abc"), counts, [], found), found)
    assert [row[4] for row in table.rows] == [50, None, 100]
    assert table.rows[0][6:] == ["b", 50, 0]
    assert table.rows[1][5:] == [None, "", None, 1]


def test_mistakes_are_the_most_confident_ones_few_of_each_class_with_their_own_images(
    results, digits
):
    chosen = find_mistakes(results, results.findings)
    assert len(chosen) == 2 * MAX_OF_CLASS <= MAX_MISTAKES
    sure = [mistake.confidence for mistake in chosen]
    assert sure == sorted(sure, reverse=True)
    assert {mistake.true_name for mistake in chosen} == {"8", "9"}
    assert {mistake.predicted_name for mistake in chosen} == {"0"}
    found, first = results.findings, chosen[0]
    wrong = np.flatnonzero(found.labels >= 8)
    row = wrong[np.argmax(found.confidence[wrong])]
    image = find_images(digits, read_manifest(digits).splits["test"], [int(found.ids[row])])
    np.testing.assert_array_equal(first.image, decode(image[int(found.ids[row])]))


def test_images_are_found_by_their_ids_and_those_that_are_not_there_are_not(digits):
    split = read_manifest(digits).splits["test"]
    ids = ids_by_label(digits, split).tolist()
    found = find_images(digits, split, [*ids, 10**9])
    assert sorted(found) == sorted(ids)
    assert find_images(digits, split, []) == {}


def test_where_the_data_is_gone_or_another_the_rest_is_drawn_and_that_is_said(
    results, tmp_path, caplog
):
    about = {**results.findings.about, "fingerprint": "another"}
    moved = replace(results, history=[], findings=replace(results.findings, about=about))
    with caplog.at_level(logging.WARNING):
        drawn = draw_figures(moved)
    assert "mistakes" not in drawn
    assert "confusion" in drawn
    assert re.search("no grid of mistakes: the data in .* has changed", caplog.text)


def test_a_run_that_was_stopped_has_a_report_of_what_there_is(results, tmp_path):
    stopped = replace(results, findings=None)
    files = [file.name for file in summary.write(stopped, tmp_path)]
    assert files == ["epochs.png", "embedding_geometry.png", "report.html"]
    assert "the run did not reach its end" in (tmp_path / "report.html").read_text()
