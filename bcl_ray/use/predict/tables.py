"""Rows of predictions as people read them: names instead of numbers.

Axes: N images, K classes, k of them named, E embedding width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bcl_ray.data.longtail import shot_groups

Columns = Mapping[str, NDArray[Any]]
KEYS = ("path", "id", "true_class")  # columns that say which image it is, in this order


class Classes:
    """Names of the classes, and the shot group of each.

    Args:
        names: (K,).
        counts: training images per class, (K,).
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self.names = pa.array(names, pa.string())
        groups = np.empty(len(names), object)
        for group, members in shot_groups(counts).items():
            groups[members] = group
        self.groups = pa.array(groups, pa.string())


def table_of(columns: Columns, classes: Classes) -> pa.Table:
    """A part's rows as people read them.

    Args:
        columns: some of KEYS, `fault`, `classes` (N, k), `probabilities` (N, k), perhaps
            `embedding` (N, E).
        classes: of the model.

    Returns:
        Keys, class_1, probability_1, ..., group (of class_1), error, and embedding; an image that
        could not be read has nothing but an error.
    """
    unreadable = columns["fault"] != ""
    keys = [name for name in KEYS if name in columns]
    made: dict[str, Any] = {name: pa.array(columns[name].tolist()) for name in keys}
    for place in range(columns["classes"].shape[1]):
        found = pa.array(columns["classes"][:, place], mask=unreadable)
        made[f"class_{place + 1}"] = classes.names.take(found)
        made[f"probability_{place + 1}"] = pa.array(
            columns["probabilities"][:, place], mask=unreadable
        )
    first = pa.array(columns["classes"][:, 0], mask=unreadable)
    made["group"] = classes.groups.take(first)
    made["error"] = pa.array(columns["fault"].tolist(), pa.string(), mask=~unreadable)
    if "embedding" in columns:
        made["embedding"] = _lists(columns["embedding"], ~unreadable)
    return pa.table(made)


def _lists(vectors: NDArray[Any], there: NDArray[np.bool_]) -> pa.Array:
    """Rows of (N, E) as lists, null where there is none."""
    # Not of a fixed size: pyarrow writes those to Parquet with nulls, and cannot read them again.
    ends = vectors.shape[1] * np.cumsum(there)
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    values = pa.array(vectors[there].reshape(-1))
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~there))


def counts_of(table: pa.Table) -> dict[str, Any]:
    """What a summary needs of a table: images, unreadable, and by group images and confidence."""
    by_group = table.group_by("group", use_threads=False)
    sums = by_group.aggregate([("group", "count"), ("probability_1", "sum")]).to_pylist()
    sums = sorted((row for row in sums if row["group"] is not None), key=lambda row: row["group"])
    return {
        "images": len(table),
        "unreadable": len(table) - table["error"].null_count,
        "groups": {row["group"]: row["group_count"] for row in sums},
        "confidence": {row["group"]: row["probability_1_sum"] for row in sums},
    }
