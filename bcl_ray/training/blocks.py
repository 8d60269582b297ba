"""Blocks of views as Arrow tables, which processes share through an object store without a copy."""

import numpy as np
import pyarrow as pa

from bcl_ray.training.tasks import Batch


def packed(batch: Batch) -> pa.Table:
    """A batch as a table of one row, each array a value of bytes.

    One row, so that Ray Data never cuts or joins blocks.
    """
    columns = {}
    for name, array in batch.items():
        data = np.ascontiguousarray(array)
        offsets = pa.py_buffer(np.array([0, data.nbytes], dtype=np.int64))
        columns[name] = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)]
        )
        columns[f"{name}.shape"] = pa.array([list(data.shape)], pa.list_(pa.int64()))
        columns[f"{name}.dtype"] = pa.array([data.dtype.str])
    return pa.table(columns)


def unpacked(table: pa.Table) -> Batch:
    """The batch of a table by `packed`; its arrays are read-only memory of the table."""
    names = [name for name in table.column_names if "." not in name]
    return {
        name: np.frombuffer(_value(table[name]), dtype=table[f"{name}.dtype"][0].as_py()).reshape(
            table[f"{name}.shape"][0].as_py()
        )
        for name in names
    }


def _value(column: pa.ChunkedArray) -> pa.Buffer:
    """The bytes of a column's only value; reading it as a scalar would copy them."""
    (chunk,) = column.chunks
    _, offsets, data = chunk.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2].tolist()
    return data[begin:end] if data is not None else pa.py_buffer(b"")
