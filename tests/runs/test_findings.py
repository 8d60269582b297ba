"""Files of an evaluation, written and read."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from bcl_ray.runs import findings
from bcl_ray.runs.findings import Findings
from bcl_ray.storage import files


def some(features: int = 3, classes: int = 2) -> Findings:
    return Findings(
        ids=np.array([3, 7, 2**40]),
        labels=np.array([0, 1, 1]),
        predicted=np.array([1, 1, 0]),
        second=np.array([0, 0, 1]),
        confidence=np.array([0.5, 0.75, 0.9], dtype=np.float32),
        classes=np.arange(classes),
        embeddings=np.arange(4 * classes, dtype=np.float32).reshape(classes, 4),
        features=np.ones((classes, features), dtype=np.float32),
        about={"split": "test", "metrics": {"accuracy/all": 50.0}, "calibrated_bins": None},
    )


@pytest.mark.parametrize(("features", "classes"), [(3, 2), (0, 2), (0, 0)])
def test_findings_are_read_as_they_were_written(tmp_path, features, classes):
    wrote = some(features, classes)
    findings.write(wrote, str(tmp_path))
    got = findings.read(str(tmp_path))
    for name, value in vars(wrote).items():
        if name == "about":
            assert got.about == value
        elif not (classes == 0 and value.ndim == 2):  # an empty matrix has no width
            np.testing.assert_array_equal(getattr(got, name), value)
            assert getattr(got, name).dtype == value.dtype


def test_the_parquet_file_has_one_row_per_image(tmp_path):
    findings.write(some(), str(tmp_path))
    table = pq.read_table(io.BytesIO(files.read_bytes(f"{tmp_path}/{findings.PREDICTIONS}")))
    assert table.column_names == ["id", "label", "predicted", "confidence", "second"]
    assert table.num_rows == 3


def test_a_folder_without_findings_has_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        findings.read(str(tmp_path))
