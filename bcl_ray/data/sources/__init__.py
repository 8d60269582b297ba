"""Sources of images: digits, CIFAR, a folder per class, list files, Parquet.

A source has class names and splits. A split has the labels of all rows in memory, and streams the
encoded bytes of the rows that are requested.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bcl_ray.data.sources.arrays import cifar, digits
from bcl_ray.data.sources.base import Content, Rows, Source, SourceSplit
from bcl_ray.data.sources.files import folder, list_source, parse_list
from bcl_ray.data.sources.parquet import parquet, parquet_files
from bcl_ray.experiment.choices import SOURCES, code
from bcl_ray.machine.errors import UserError

__all__ = [
    "Content",
    "Rows",
    "Source",
    "SourceRequest",
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


@dataclass(frozen=True)
class SourceRequest:
    """The options of `bcl-ray shard` that describe a source."""

    name: str
    """Kind of source, a name in SOURCES."""
    path: str | None = None
    """Folder, file or URI of the images."""
    splits: Mapping[str, str] | None = None
    """List file or Parquet file of each split, by the split's name."""
    classes: str | None = None
    """Text file with the name of class k in line k + 1."""
    image_column: str = "image"
    """Parquet column of encoded images: binary, or a struct with a field 'bytes'."""
    label_column: str = "label"
    """Parquet column of integer class indices."""
    id_column: str | None = None
    """Parquet column of unique integers; None to use row numbers as ids."""

    @property
    def required_path(self) -> str:
        """The path.

        Raises:
            ValueError: No path was given.
        """
        if self.path is None:
            raise UserError(
                f"source '{self.name}' needs --from: the folder or URI that holds the images"
            )
        return self.path


def open_source(name: str, path: str | None = None, **options: Any) -> Source:
    """Open a source.

    Args:
        name: Kind of source, a name in SOURCES.
        path: Folder, file or URI of the images.
        options: The other fields of SourceRequest.

    Raises:
        ValueError: An option is missing or does not fit, or the content makes no source.
        OSError: A file does not exist or cannot be read.
    """
    kind, request = SOURCES[name], SourceRequest(name, path, **options)
    if (request.splits or request.classes) and not kind.takes_lists:
        names = " and ".join(f"'{other.name}'" for other in SOURCES if other.takes_lists)
        raise UserError(f"--split and --classes are for sources {names}, not '{request.name}'")
    source: Source = code(kind.open)(request)
    return source


def open_digits(request: SourceRequest) -> Source:
    """Open the digits of scikit-learn."""
    if request.path is not None:
        raise UserError("source 'digits' comes with scikit-learn: leave out --from")
    return digits()


def open_cifar(request: SourceRequest) -> Source:
    """Open CIFAR-10 or CIFAR-100."""
    return cifar(request.name, request.path)


def open_folder(request: SourceRequest) -> Source:
    """Open a folder per split that holds a folder per class."""
    return folder(request.required_path)


def open_list(request: SourceRequest) -> Source:
    """Open images that are named in list files."""
    return list_source(request.required_path, request.splits or {}, classes=request.classes)


def open_parquet(request: SourceRequest) -> Source:
    """Open Parquet files: one per split, or all those of a folder."""
    splits = request.splits or {}
    return parquet(
        {split: [file] for split, file in splits.items()} or parquet_files(request.required_path),
        classes=request.classes,
        image_column=request.image_column,
        label_column=request.label_column,
        id_column=request.id_column,
    )
