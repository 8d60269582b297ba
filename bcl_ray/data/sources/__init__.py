"""Where images come from: digits, CIFAR, a folder per class, list files, Parquet.

A source names its classes and its splits; a split knows every row's label at once and streams
the encoded bytes of the rows it is asked for.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from bcl_ray.data.sources.arrays import cifar, digits
from bcl_ray.data.sources.base import Content, Rows, Source, SourceSplit
from bcl_ray.data.sources.files import folder, list_source, parse_list
from bcl_ray.data.sources.parquet import parquet, parquet_files

__all__ = [
    "Content",
    "Rows",
    "Source",
    "SourceName",
    "SourceSplit",
    "cifar",
    "digits",
    "folder",
    "list_source",
    "open_source",
    "parquet",
    "parquet_files",
    "parse_list",
]

SourceName = Literal["digits", "cifar10", "cifar100", "folder", "list", "parquet"]


def open_source(
    name: SourceName,
    path: str | None = None,
    *,
    splits: Mapping[str, str] | None = None,
    classes: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    id_column: str | None = None,
) -> Source:
    """Open a source by name.

    Args:
        name: what kind of source.
        path: folder, file or URI it lies in. digits needs none; CIFAR without one is downloaded.
        splits: split name to list file (source 'list') or to Parquet file (source 'parquet').
        classes: text file of class names, line label + 1 (sources 'list' and 'parquet').
        image_column: Parquet column of encoded images: binary, or a struct with a field 'bytes'.
        label_column: Parquet column of integer class indices.
        id_column: Parquet column of unique integers; None: ids are row numbers.

    Raises:
        ValueError: an option that is missing or does not fit, or content that makes no source.
        OSError: something that does not exist or may not be read.
    """
    if (splits or classes) and name not in ("list", "parquet"):
        raise ValueError(
            f"--split and --classes are for sources 'list' and 'parquet', not '{name}'"
        )
    if name == "digits":
        if path is not None:
            raise ValueError("source 'digits' comes with scikit-learn: leave out --from")
        return digits()
    if name in ("cifar10", "cifar100"):
        return cifar(name, path)
    if name == "parquet" and (path or splits):
        files = {split: [file] for split, file in splits.items()} if splits else None
        return parquet(
            files or parquet_files(str(path)),
            classes=classes,
            image_column=image_column,
            label_column=label_column,
            id_column=id_column,
        )
    if path is None:
        raise ValueError(f"source '{name}' needs --from: the folder or URI that holds the images")
    if name == "folder":
        return folder(path)
    if name == "list":
        return list_source(path, splits or {}, classes=classes)
    raise ValueError(f"source '{name}' must be one of {', '.join(get_args(SourceName))}")
