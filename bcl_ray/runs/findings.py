"""What the last evaluation of a run found, as files beside its checkpoints.

<folder>/predictions.parquet   one row per image, in the order of ids
<folder>/class_means.parquet   one row per class of the sample that geometry is measured on

Axes: N images, C classes in the sample, E embedding width, D feature width.
"""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bcl_ray.storage import files

PREDICTIONS, MEANS = "predictions.parquet", "class_means.parquet"
METADATA_KEY = b"bcl_ray"  # of `about` in the Parquet file


@dataclass(frozen=True)
class Findings:
    """Predictions of a network for a split, and the means of its vectors per class."""

    ids: NDArray[np.int64]
    """(N,), in ascending order."""
    labels: NDArray[np.int64]
    """(N,)."""
    predicted: NDArray[np.int64]
    """Class with the highest probability, (N,)."""
    second: NDArray[np.int64]
    """Class with the second highest probability, (N,)."""
    confidence: NDArray[np.float32]
    """Probability of the predicted class, before calibration, (N,)."""
    classes: NDArray[np.int64]
    """Classes of the sample, (C,)."""
    embeddings: NDArray[np.float32]
    """Mean embedding of each class, (C, E)."""
    features: NDArray[np.float32]
    """Mean features of each class, (C, D); (C, 0) for a loss without a contrastive term."""
    about: dict[str, Any] = field(default_factory=dict)
    """Keys: data, fingerprint, split, epoch, metrics; `bins` and `calibrated_bins` by confidence,
    (15, 3): images, summed confidence, correct images. `calibrated_bins` is None for too few
    images."""


def write(findings: Findings, folder: str) -> None:
    """Write both files into a folder or URI.

    Raises:
        OSError: The folder cannot be written.
    """
    predictions = pa.table(
        {
            "id": findings.ids,
            "label": pa.array(findings.labels, pa.int32()),
            "predicted": pa.array(findings.predicted, pa.int32()),
            "confidence": findings.confidence,
            "second": pa.array(findings.second, pa.int32()),
        }
    ).replace_schema_metadata({METADATA_KEY: json.dumps(findings.about)})
    means = pa.table(
        {
            "class": pa.array(findings.classes, pa.int32()),
            "embedding": _to_column(findings.embeddings),
            "feature": _to_column(findings.features),
        }
    )
    for name, table in ((MEANS, means), (PREDICTIONS, predictions)):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        files.write_bytes(files.join(folder, name), sink.getvalue())


def read(folder: str) -> Findings:
    """Read both files from a folder or URI.

    Raises:
        FileNotFoundError: A file is missing.
        OSError: A file cannot be read.
    """
    predictions, means = (
        pq.read_table(io.BytesIO(files.read_bytes(files.join(folder, name))))
        for name in (PREDICTIONS, MEANS)
    )
    columns = {name: predictions[name].to_numpy() for name in predictions.column_names}
    return Findings(
        ids=columns["id"],
        labels=columns["label"].astype(np.int64),
        predicted=columns["predicted"].astype(np.int64),
        second=columns["second"].astype(np.int64),
        confidence=columns["confidence"],
        classes=means["class"].to_numpy().astype(np.int64),
        embeddings=_to_matrix(means["embedding"]),
        features=_to_matrix(means["feature"]),
        about=json.loads(predictions.schema.metadata[METADATA_KEY]),
    )


def _to_column(matrix: NDArray[np.float32]) -> Any:
    return pa.array(list(matrix.astype(np.float32)), pa.list_(pa.float32()))


def _to_matrix(column: Any) -> NDArray[np.float32]:
    rows = column.to_pylist()
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else 0)
