"""What the last evaluation of a run found, as files beside its checkpoints.

<folder>/predictions.parquet   one row per image, in the order of ids
<folder>/class_means.parquet   one row per class of the sample whose geometry was measured

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
ABOUT = b"bcl_ray"  # key of the Parquet file's metadata


@dataclass(frozen=True)
class Findings:
    """What a network said of every image of a split, and where it put the classes."""

    ids: NDArray[np.int64]
    """(N,), rising."""
    labels: NDArray[np.int64]
    """(N,)."""
    predicted: NDArray[np.int64]
    """(N,)."""
    second: NDArray[np.int64]
    """The class that came next, (N,)."""
    confidence: NDArray[np.float32]
    """Probability of the predicted class, before calibration, (N,)."""
    classes: NDArray[np.int64]
    """Those of the sample, (C,)."""
    embeddings: NDArray[np.float32]
    """Their mean embeddings, (C, E)."""
    features: NDArray[np.float32]
    """Their mean features, (C, D); (C, 0) where the loss contrasts nothing."""
    about: dict[str, Any] = field(default_factory=dict)
    """data, its fingerprint, split, epoch and metrics; `bins` and `calibrated_bins` by
    confidence, (15, 3): images, summed confidence, correct images; the latter is None of too few
    images."""


def write(findings: Findings, folder: str) -> None:
    """Write both files into a folder or URI.

    Raises:
        OSError: it cannot be written.
    """
    predictions = pa.table(
        {
            "id": findings.ids,
            "label": pa.array(findings.labels, pa.int32()),
            "predicted": pa.array(findings.predicted, pa.int32()),
            "confidence": findings.confidence,
            "second": pa.array(findings.second, pa.int32()),
        }
    ).replace_schema_metadata({ABOUT: json.dumps(findings.about)})
    means = pa.table(
        {
            "class": pa.array(findings.classes, pa.int32()),
            "embedding": _vectors(findings.embeddings),
            "feature": _vectors(findings.features),
        }
    )
    for name, table in ((MEANS, means), (PREDICTIONS, predictions)):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        files.write_bytes(files.join(folder, name), sink.getvalue())


def read(folder: str) -> Findings:
    """What was written there.

    Raises:
        FileNotFoundError: nothing was.
        OSError: it cannot be read.
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
        embeddings=_matrix(means["embedding"]),
        features=_matrix(means["feature"]),
        about=json.loads(predictions.schema.metadata[ABOUT]),
    )


def _vectors(matrix: NDArray[np.float32]) -> Any:
    return pa.array(list(matrix.astype(np.float32)), pa.list_(pa.float32()))


def _matrix(column: Any) -> NDArray[np.float32]:
    rows = column.to_pylist()
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else 0)
