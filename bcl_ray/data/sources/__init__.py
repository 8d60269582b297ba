"""Sources of images: digits, CIFAR, a folder per class, list files, Parquet.

A source has class names and splits. A split has the labels of all rows in memory, and reads the
encoded bytes of the rows that are requested, in any process.
"""

from typing import Any

from bcl_ray.data.sources.arrays import cifar, digits
from bcl_ray.data.sources.base import (
    Content,
    Rows,
    Source,
    SourceRequest,
    SourceSplit,
    read_ahead,
)
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
    "read_ahead",
]


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
