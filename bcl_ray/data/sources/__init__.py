"""Where images come from: digits, CIFAR, a folder per class, list files, Parquet.

A source names its classes and its splits; a split knows every row's label at once and streams
the encoded bytes of the rows it is asked for.
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
    """What a source is opened with: the options of `bcl-ray shard`."""

    name: str
    """Kind of source, a name in SOURCES."""
    path: str | None = None
    """Folder, file or URI that it lies in."""
    splits: Mapping[str, str] | None = None
    """Name of each split, and its list file or Parquet file."""
    classes: str | None = None
    """Text file of class names, line label + 1."""
    image_column: str = "image"
    """Parquet column of encoded images: binary, or a struct with a field 'bytes'."""
    label_column: str = "label"
    """Parquet column of integer class indices."""
    id_column: str | None = None
    """Parquet column of unique integers; None: ids are row numbers."""

    @property
    def required_path(self) -> str:
        """The path.

        Raises:
            ValueError: there is none.
        """
        if self.path is None:
            raise UserError(
                f"source '{self.name}' needs --from: the folder or URI that holds the images"
            )
        return self.path


def open_source(name: str, path: str | None = None, **options: Any) -> Source:
    """Open a source.

    Args:
        name: its kind, a name in SOURCES.
        path: folder, file or URI that it lies in.
        options: the other fields of SourceRequest.

    Raises:
        ValueError: an option that is missing or does not fit, or content that makes no source.
        OSError: something that does not exist or may not be read.
    """
    kind, request = SOURCES[name], SourceRequest(name, path, **options)
    if (request.splits or request.classes) and not kind.takes_lists:
        takers = " and ".join(f"'{other.name}'" for other in SOURCES if other.takes_lists)
        raise UserError(f"--split and --classes are for sources {takers}, not '{request.name}'")
    source: Source = code(kind.open)(request)
    return source


def open_digits(request: SourceRequest) -> Source:
    """scikit-learn's digits."""
    if request.path is not None:
        raise UserError("source 'digits' comes with scikit-learn: leave out --from")
    return digits()


def open_cifar(request: SourceRequest) -> Source:
    """CIFAR-10 or CIFAR-100."""
    return cifar(request.name, request.path)


def open_folder(request: SourceRequest) -> Source:
    """A folder per split, in it a folder per class."""
    return folder(request.required_path)


def open_list(request: SourceRequest) -> Source:
    """List files, a line per image."""
    return list_source(request.required_path, request.splits or {}, classes=request.classes)


def open_parquet(request: SourceRequest) -> Source:
    """Parquet files, one per split or those of a folder."""
    splits = request.splits or {}
    return parquet(
        {split: [file] for split, file in splits.items()} or parquet_files(request.required_path),
        classes=request.classes,
        image_column=request.image_column,
        label_column=request.label_column,
        id_column=request.id_column,
    )
