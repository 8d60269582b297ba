"""Sources whose images are a column of tables: Parquet files, and what `huggingface` finds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bcl_ray.data.sources.base import Content, Rows, Source, SourceRequest, SourceSplit
from bcl_ray.data.sources.class_names import numbers_as_names, read_class_names
from bcl_ray.data.sources.table_columns import Columns, find_columns
from bcl_ray.data.sources.table_files import TableFile, open_table
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

# A row group is read from its beginning, so that parts of one are read again and again.
PARTS_PER_GROUP = 16  # at most; reading takes little of the time of a check


def open_parquet(request: SourceRequest) -> Source:
    """Open Parquet files: some per split, or all those of a folder."""
    return tables(request.splits or parquet_files(request.required_path), request)


def parquet_files(path: str, hint: str = "") -> dict[str, list[str]]:
    """The Parquet files of each split in a folder: `<split>.parquet` or `<split>-*.parquet`.

    Args:
        path: Folder or URI; if it ends in .parquet, it is the only file of the train split.
        hint: Addition to the error message.

    Raises:
        ValueError: There are no files of a train split.
    """
    if paths.ends_with(path, ".parquet"):
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


def parquet(by_split: Mapping[str, Sequence[str]], *, id_column: str | None = None) -> Source:
    """Images and labels of Parquet files with the columns `image` and `label`.

    Args:
        by_split: The files of each split.
        id_column: Column of unique integers. None: ids are row numbers.
    """
    return tables(by_split, SourceRequest("parquet", id_column=id_column))


def tables(by_split: Mapping[str, Sequence[str]], request: SourceRequest) -> Source:
    """Images in a column of tables, which are listed for each split.

    Class names are, in order of preference: the lines of the file `request.classes`, those in the
    metadata of the first training file, the lines of classes.txt in its folder, or numbers. Files
    whose metadata has the same classes in another order are read by the classes' names.

    Raises:
        ValueError: There is no train split, or a file has no such columns.
        OSError: A file cannot be read.
    """
    if "train" not in by_split:
        raise UserError(f"source '{request.name}' needs --split train=FILE")
    first = by_split["train"][0]
    with open_table(first) as table:
        known = find_columns(first, table, request).class_names
    splits = {split: _table_split(list(uris), request, known) for split, uris in by_split.items()}
    empty = [name for name, split in splits.items() if name != "train" and _is_unlabelled(split)]
    notes = [f"split '{name}' is left out, because no image in it has a label" for name in empty]
    splits = {name: split for name, split in splits.items() if name not in empty}
    locations = tuple(sorted({paths.parent(uri) for uris in by_split.values() for uri in uris}))
    beside = files.join(paths.parent(first) or ".", "classes.txt")
    if request.classes is not None:
        names = read_class_names(request.classes)
    elif known is not None:
        names = known
    elif files.exists(beside):
        names = read_class_names(beside)
    else:
        names = numbers_as_names(splits["train"].labels)
    return Source(request.name, names, splits, locations, tuple(notes))


def _is_unlabelled(split: SourceSplit) -> bool:
    """Whether rows have no labels, as in the test splits of competitions."""
    return len(split.labels) > 0 and not split.faults and bool((split.labels == -1).all())


def _table_split(
    uris: Sequence[str], request: SourceRequest, class_names: tuple[str, ...] | None
) -> SourceSplit:
    images, lengths, labels, ids, piece_rows = [], [0], [], [], 1
    faults: dict[int, str] = {}
    for uri in uris:
        with open_table(uri) as table:
            columns = find_columns(uri, table, request)
            piece_rows = max(piece_rows, table.piece_rows)
            some, strange = _in_order(
                _read_integers(uri, table, columns.label), columns, class_names
            )
            faults |= {sum(lengths) + row: fault for row, fault in strange.items()}
            labels.append(some)
            if columns.id is not None:
                ids.append(_read_integers(uri, table, columns.id))
            lengths.append(table.rows)
            images.append((paths.absolute(uri), columns.image))
    starts = np.cumsum(lengths)

    def read(rows: Rows) -> TableImages:
        within = zip(images, starts[:-1], starts[1:], strict=True)
        parts = [(*image, _rows_within(rows, *bounds)) for image, *bounds in within]
        return TableImages([part for part in parts if len(part[2])])

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{uris[file]} row {row - int(starts[file])}"

    return SourceSplit(
        np.concatenate(labels),
        read,
        where,
        ids=np.concatenate(ids) if ids else None,
        faults=faults,
        least_rows=piece_rows // PARTS_PER_GROUP,
    )


def _in_order(
    labels: Rows, columns: Columns, class_names: tuple[str, ...] | None
) -> tuple[Rows, dict[int, str]]:
    """The labels of a file in the order of the first file's class names, and faults by row."""
    own = columns.class_names
    if own is None or class_names is None or own == class_names:
        return labels, {}
    if len(set(own)) < len(own) or len(set(class_names)) < len(class_names):
        raise UserError(
            f"files have different classes, of which some have the same name ({own} and "
            f"{class_names}): it is not clear which is which; give each a name of its own"
        )
    position = {name: label for label, name in enumerate(class_names)}
    ordered = np.array([position.get(name, -1) for name in own], dtype=np.int64)
    named = (labels >= 0) & (labels < len(own))
    moved = np.full(len(labels), -1, dtype=np.int64)
    moved[named] = ordered[labels[named]]
    faults = {}
    for row in np.flatnonzero((moved < 0) & (labels >= 0)).tolist():
        what = f"'{own[labels[row]]}'" if named[row] else f"label {labels[row]}"
        rule = "a class of the training split" if named[row] else "named in its file's metadata"
        faults[row] = f"{what} is not {rule}"
    return moved, faults


@dataclass(frozen=True)
class TableImages:
    """Images in a column of tables; iterating reads them."""

    parts: Sequence[tuple[str, str, Rows]]
    """Files, their columns of images, and rows of each, rising."""

    def __iter__(self) -> Iterator[Content]:
        for uri, column, rows in self.parts:
            yield from _read_images(uri, column, rows)


def _read_images(uri: str, column: str, rows: Rows) -> Iterator[Content]:
    """Images of some rows of a file, which are given in rising order.

    Only pieces that contain some of them are read.
    """
    with open_table(uri) as table, files.explain_errors(uri):
        start = 0
        for length, batches in table.pieces(column):
            piece = _rows_within(rows, start, start + length)
            begin = 0
            while begin <= piece.max(initial=-1):
                images = next(batches)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                for row in _rows_within(piece, begin, begin + len(images)).tolist():
                    yield images[row].as_py() or b""
                begin += len(images)
            start += length


def _rows_within(rows: Rows, start: int, end: int) -> Rows:
    """Those of the rising rows that are in [start, end), relative to start."""
    first, last = np.searchsorted(rows, [start, end])
    return rows[first:last] - start


def _read_integers(uri: str, table: TableFile, column: str) -> Rows:
    with files.explain_errors(uri):
        values = table.column(column)
    try:
        return np.asarray(values.cast(pa.int64()).fill_null(-1).to_numpy(), dtype=np.int64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"{uri}: column '{column}' must hold integers, and it holds {values.type}"
        ) from None
