"""Sources of images: digits, CIFAR, folders, list files, Parquet, Hugging Face, WebDataset.

A source has class names and splits. A split has the labels of all rows in memory, and reads the
encoded bytes of the rows that are requested, in any process.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bcl_ray.data.sources.arrays import digits
from bcl_ray.data.sources.base import Content, Rows, Source, SourceRequest, SourceSplit, shorten
from bcl_ray.data.sources.class_names import with_unique_names
from bcl_ray.data.sources.lists import parse_list
from bcl_ray.data.sources.parquet import parquet
from bcl_ray.data.sources.reading import FileParts, read_ahead
from bcl_ray.experiment.choices import SOURCES
from bcl_ray.experiment.table import code
from bcl_ray.machine.errors import UserError

__all__ = [
    "Content",
    "FileParts",
    "Rows",
    "Source",
    "SourceRequest",
    "SourceSplit",
    "digits",
    "open_source",
    "parquet",
    "parse_list",
    "read_ahead",
]


def open_source(
    name: str,
    path: str | None = None,
    *,
    splits: Mapping[str, str | Sequence[str]] | None = None,
    **options: Any,
) -> Source:
    """Open a source.

    Args:
        name: Kind of source, a name in SOURCES.
        path: Folder, file or URI of the images.
        splits: Files or folders of each split.
        options: The other fields of SourceRequest.

    Raises:
        ValueError: An option is missing or does not fit, or the content makes no source.
        OSError: A file does not exist or cannot be read.
    """
    several = {
        split: (uris,) if isinstance(uris, str) else tuple(uris)
        for split, uris in (splits or {}).items()
    }
    kind, request = SOURCES[name], SourceRequest(name, path, several, **options)
    if (request.splits or request.classes) and not kind.takes_lists:
        names = shorten((f"'{other.name}'" for other in SOURCES if other.takes_lists), 9)
        raise UserError(f"--split and --classes are for sources {names}, not '{request.name}'")
    source: Source = code(kind.open)(request)
    return with_unique_names(source)
