"""Files of tables, which are read a piece at a time: Parquet, and the Arrow files of `datasets`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths


class TableFile(Protocol):
    """An open file of a table."""

    schema: Any
    rows: int
    piece_rows: int
    """Rows of the largest piece: to read one of its rows, all before it are read."""

    def column(self, name: str) -> Any:
        """A whole column of small values, as a chunked array."""

    def pieces(self, column: str) -> Iterator[tuple[int, Iterator[Any]]]:
        """The number of rows of each piece, and its values of a column, in batches when read."""


class ParquetTable:
    """A Parquet file, whose pieces are row groups."""

    def __init__(self, handle: Any) -> None:
        # Read by pages, of up to 1,024 rows in Arrow's files: in files that other programs wrote, a
        # row group may be larger than the memory.
        self._file = pq.ParquetFile(handle, buffer_size=8 << 20, pre_buffer=False)
        metadata = self._file.metadata
        self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.schema, self.rows = self._file.schema_arrow, metadata.num_rows
        self.piece_rows = max(self._groups, default=1)

    def column(self, name: str) -> Any:
        """A whole column."""
        return self._file.read([name]).column(0)

    def pieces(self, column: str) -> Iterator[tuple[int, Iterator[Any]]]:
        """Row groups, of which those whose batches are not read cost nothing."""
        for group, rows in enumerate(self._groups):
            batches = self._file.iter_batches(64, row_groups=[group], columns=[column])
            yield rows, (batch.column(0) for batch in batches)


class ArrowTable:
    """A stream or a file of Arrow's record batches, which are read one after another."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.schema = self._batches().schema
        lengths = [len(batch) for batch in self._batches()]
        self.rows = sum(lengths)
        # Of a local file, which is mapped into memory, only the wanted rows are read.
        mapped = isinstance(handle, pa.MemoryMappedFile)
        self.piece_rows = max(lengths, default=1) if mapped else max(self.rows, 1)

    def _batches(self) -> Any:
        self._handle.seek(0)
        try:
            return pa.ipc.open_stream(self._handle)
        except pa.ArrowInvalid:
            self._handle.seek(0)
            reader = pa.ipc.open_file(self._handle)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            return pa.RecordBatchReader.from_batches(reader.schema, batches)

    def column(self, name: str) -> Any:
        """A whole column."""
        chunks = [batch.column(name) for batch in self._batches()]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def pieces(self, column: str) -> Iterator[tuple[int, Iterator[Any]]]:
        """Record batches."""
        for batch in self._batches():
            yield len(batch), iter([batch.column(column)])


@contextmanager
def open_table(uri: str) -> Iterator[TableFile]:
    """Open a table, of the kind that its name ends in: .arrow, or else Parquet.

    Errors of what the block reads are not explained: it may read other files, too.

    Raises:
        ValueError: It is no such file.
        OSError: It cannot be read.
    """
    filesystem, path = files.resolve(uri)
    is_arrow = paths.ends_with(uri, ".arrow")
    with files.explain_errors(uri):
        if is_arrow and isinstance(filesystem, fs.LocalFileSystem):
            handle = pa.memory_map(path)
        else:
            handle = filesystem.open_input_file(path)
    with handle:
        try:
            with files.explain_errors(uri):
                table: TableFile = ArrowTable(handle) if is_arrow else ParquetTable(handle)
        except pa.ArrowInvalid as error:
            kind = "an Arrow" if is_arrow else "a Parquet"
            raise UserError(f"{uri} is not {kind} file: {error}") from None
        yield table
