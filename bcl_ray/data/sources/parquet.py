"""Sources whose images are a column of Parquet files."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bcl_ray.data.sources.base import (
    Content,
    Rows,
    Source,
    SourceRequest,
    SourceSplit,
    names_of_classes,
)
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

# A row group is read from its beginning, so that parts of one are read again and again.
PARTS_PER_GROUP = 16  # at most; reading takes little of the time of a check


def open_parquet(request: SourceRequest) -> Source:
    """Open Parquet files: one per split, or all those of a folder."""
    return parquet(
        request.splits or parquet_files(request.required_path),
        classes=request.classes,
        image_column=request.image_column,
        label_column=request.label_column,
        id_column=request.id_column,
    )


def parquet_files(path: str, hint: str = "") -> dict[str, list[str]]:
    """The Parquet files of each split in a folder: `<split>.parquet` or `<split>-*.parquet`.

    Args:
        path: Folder or URI; if it ends in .parquet, it is the only file of the train split.
        hint: Addition to the error message.

    Raises:
        ValueError: There are no files of a train split.
    """
    if path.endswith(".parquet"):
        return {"train": [path]}
    by_split: dict[str, list[str]] = {}
    for file in files.list_files(path):
        if match := re.fullmatch(r"([A-Za-z0-9_]+)(-.*)?\.parquet", file):
            by_split.setdefault(match[1], []).append(files.join(path, file))
    if "train" not in by_split:
        raise UserError(
            f"{path} has no train.parquet or train-*.parquet{hint}: name the files with "
            "--split train=FILE --split test=FILE"
        )
    return {
        split: by_split[split] for split in sorted(by_split, key=lambda split: split != "train")
    }


def parquet(
    by_split: Mapping[str, Sequence[str]],
    *,
    classes: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    id_column: str | None = None,
) -> Source:
    """Images in a column of Parquet files, which are listed for each split.

    Class names are, in order of preference: the lines of the file `classes`, the JSON list under
    'class_names' in the metadata of the first training file, the lines of classes.txt in its
    folder, or numbers.

    Args:
        image_column: Column of encoded images: binary, or a struct with a field 'bytes'.
        label_column: Column of integer class indices.
        id_column: Column of unique integers. None: ids are row numbers.

    Raises:
        ValueError: There is no train split, or a file has no such columns.
        OSError: A file cannot be read.
    """
    splits = {
        split: _parquet_split(list(uris), image_column, label_column, id_column)
        for split, uris in by_split.items()
    }
    if "train" not in splits:
        raise UserError("source 'parquet' needs --split train=FILE")
    locations = tuple(sorted({paths.parent(uri) for uris in by_split.values() for uri in uris}))
    first = by_split["train"][0]
    with _open_parquet(first) as file:
        metadata = (file.schema_arrow.metadata or {}).get(b"class_names")
    if classes is None and metadata is not None:
        names = tuple(str(name) for name in json.loads(metadata))
        return Source("parquet", names, splits, locations)
    default = files.join(first.rpartition("/")[0] or ".", "classes.txt")
    if classes is None and files.exists(default):
        classes = default
    names = names_of_classes(classes, splits["train"].labels)
    return Source("parquet", names, splits, locations)


def _parquet_split(
    uris: Sequence[str], image_column: str, label_column: str, id_column: str | None
) -> SourceSplit:
    options = {"--image-column": image_column, "--label-column": label_column}
    if id_column is not None:
        options["--id-column"] = id_column
    lengths, labels, ids, group_rows = [], [], [], 1
    for uri in uris:
        with _open_parquet(uri) as file:
            _check_columns(uri, file.schema_arrow.names, options)
            _check_images(uri, file.schema_arrow.field(image_column))
            lengths.append(file.metadata.num_rows)
            groups = range(file.num_row_groups)
            group_rows = max([group_rows, *(file.metadata.row_group(i).num_rows for i in groups)])
            labels.append(_read_integers(uri, file, label_column))
            if id_column is not None:
                ids.append(_read_integers(uri, file, id_column))
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def read(rows: Rows) -> ParquetImages:
        within = zip(uris, starts[:-1], starts[1:], strict=True)
        parts = [(paths.absolute(uri), _rows_within(rows, *bounds)) for uri, *bounds in within]
        return ParquetImages(image_column, [part for part in parts if len(part[1])])

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{uris[file]} row {row - int(starts[file])}"

    return SourceSplit(
        np.concatenate(labels),
        read,
        where,
        random_order=True,
        ids=np.concatenate(ids) if ids else None,
        least_rows=group_rows // PARTS_PER_GROUP,
    )


@dataclass(frozen=True)
class ParquetImages:
    """Images in a column of Parquet files; iterating reads them."""

    column: str
    parts: Sequence[tuple[str, Rows]]
    """Files, and rows of each, rising."""

    def __iter__(self) -> Iterator[Content]:
        for uri, rows in self.parts:
            yield from _read_images(uri, self.column, rows)


def _read_images(uri: str, column: str, rows: Rows) -> Iterator[Content]:
    """Images of some rows of a file, which are given in rising order.

    Only row groups that contain some of them are read.
    """
    with files.explain_errors(uri), _open_parquet(uri) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            group_rows = _rows_within(rows, start, end)
            if len(group_rows):
                begin = 0
                for batch in file.iter_batches(64, row_groups=[group], columns=[column]):
                    images = batch.column(0)
                    if pa.types.is_struct(images.type):
                        images = images.field("bytes")
                    for row in _rows_within(group_rows, begin, begin + len(batch)).tolist():
                        yield images[row].as_py() or b""
                    begin += len(batch)
            start = end


def _rows_within(rows: Rows, start: int, end: int) -> Rows:
    """Those of the rising rows that are in [start, end), relative to start."""
    first, last = np.searchsorted(rows, [start, end])
    return rows[first:last] - start


def _open_parquet(uri: str) -> Any:
    filesystem, path = files.resolve(uri)
    with files.explain_errors(uri):
        handle = filesystem.open_input_file(path)
    try:
        # Read by pages, of up to 1,024 rows in Arrow's files: in files that other programs wrote, a
        # row group may be larger than the memory.
        return pq.ParquetFile(handle, buffer_size=8 << 20, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri} is not a Parquet file: {error}") from None


def _check_columns(uri: str, names: Sequence[str], options: Mapping[str, str]) -> None:
    for option, column in options.items():
        if column not in names:
            raise UserError(
                f"{uri} has no column '{column}' (found: {', '.join(names)}): name it with {option}"
            )


def _check_images(uri: str, column: Any) -> None:
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{uri}: column '{column.name}' must hold encoded images (binary, or a struct with "
            f"binary 'bytes'), and it holds {column.type}"
        )


def _read_integers(uri: str, file: Any, column: str) -> Rows:
    values = file.read([column]).column(0)
    try:
        return np.asarray(values.cast(pa.int64()).fill_null(-1).to_numpy(), dtype=np.int64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"{uri}: column '{column}' must hold integers, and it holds {values.type}"
        ) from None
