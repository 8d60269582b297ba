"""Tables of predictions, with names instead of labels.

Axes: N images, K classes, k of them named, E embedding width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bcl_ray.data.longtail import group_names

Columns = dict[str, NDArray[Any]]  # of a batch of images
KEYS = ("path", "id", "true_class")  # columns that identify an image, in this order


class Classes:
    """Names of the classes, and the shot group of each.

    Args:
        names: Names of the classes, (K,).
        counts: Training images per class, (K,).
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self.names = pa.array(names, pa.string())
        self.groups = pa.array(group_names(counts), pa.string())


def table_of(columns: Columns, classes: Classes) -> pa.Table:
    """The table of a part.

    Args:
        columns: Some of KEYS, `error`, `classes` (N, k), `probabilities` (N, k), perhaps
            `embedding` (N, E).
        classes: Classes of the model.

    Returns:
        The keys, class_1, probability_1, ..., group (of class_1), error, and embedding. An image
        that could not be read has only its keys and an error.
    """
    unreadable = columns["error"] != ""
    table: dict[str, Any] = {n: pa.array(columns[n].tolist()) for n in KEYS if n in columns}
    labels = [pa.array(column, mask=unreadable) for column in columns["classes"].T]
    for rank, column in enumerate(labels, start=1):
        probabilities = columns["probabilities"][:, rank - 1]
        table[f"class_{rank}"] = classes.names.take(column)
        table[f"probability_{rank}"] = pa.array(probabilities, mask=unreadable)
    table["group"] = classes.groups.take(labels[0])
    table["error"] = pa.array(columns["error"].tolist(), pa.string(), mask=~unreadable)
    if "embedding" in columns:
        table["embedding"] = _lists(columns["embedding"], ~unreadable)
    return pa.table(table)


def _lists(vectors: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
    """The rows of (N, E) as lists; null where a row is not valid."""
    # Lists of variable size: pyarrow cannot read back fixed-size lists with nulls from Parquet.
    ends = vectors.shape[1] * np.cumsum(valid)
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    values = pa.array(vectors[valid].reshape(-1))
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~valid))


def counts_of(table: pa.Table) -> dict[str, Any]:
    """Counts of a table for the summary: images, unreadable ones, and both fields by group."""
    by_group = table.group_by("group", use_threads=False)
    sums = by_group.aggregate([("group", "count"), ("probability_1", "sum")]).to_pylist()
    sums = sorted((row for row in sums if row["group"] is not None), key=lambda row: row["group"])
    return {
        "images": len(table),
        "unreadable": len(table) - table["error"].null_count,
        "groups": {row["group"]: row["group_count"] for row in sums},
        "confidence": {row["group"]: row["probability_1_sum"] for row in sums},
    }
