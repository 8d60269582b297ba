"""The columns of a table that hold images and labels, and the names of classes in its metadata."""

import json
from typing import Any, NamedTuple

import pyarrow as pa

from bcl_ray.data.sources.base import SourceRequest
from bcl_ray.data.sources.table_files import TableFile
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths


class Columns(NamedTuple):
    """The columns of a file, and the names of its labels, if its metadata has them."""

    image: str
    label: str
    id: str | None
    class_names: tuple[str, ...] | None


def find_columns(uri: str, table: TableFile, request: SourceRequest) -> Columns:
    """Find the columns.

    Raises:
        ValueError: There are no such columns, or the names in the metadata are no names.
    """
    names: list[str] = table.schema.names
    features = _features(uri, table)

    def find(option: str, wanted: str, default: str | None = None, kind: str | None = None) -> str:
        """The wanted column; or the only one of a kind, if the wanted one is just the default."""
        if wanted in names:
            return wanted
        alike = [name for name in names if features.get(name, {}).get("_type") == kind]
        if wanted == default and len(alike) == 1:
            return alike[0]
        raise UserError(
            f"{uri} has no column '{wanted}' (found: {', '.join(names)}): name it with {option}"
        )

    image = find("--image-column", request.image_column, "image", "Image")
    label = find("--label-column", request.label_column, "label", "ClassLabel")
    if request.id_column is not None:
        find("--id-column", request.id_column)
    _check_images(uri, table.schema.field(image))
    own = (table.schema.metadata or {}).get(b"class_names")
    if own is not None:
        return Columns(image, label, request.id_column, _names(uri, "class_names", _json(own)))
    listed = features.get(label, {}).get("names")
    class_names = None if listed is None else _names(uri, f"names of '{label}'", listed)
    return Columns(image, label, request.id_column, class_names)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:  # also bytes that are not UTF-8
        return None


def _names(uri: str, what: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, list) and names and all(isinstance(n, str | int) for n in names):
        return tuple(map(str, names))
    raise UserError(
        f"{uri}: {what} in its metadata must be a JSON list of names, and it is {str(names)[:60]}: "
        "write them again, or remove them"
    )


def _features(uri: str, table: TableFile) -> dict[str, Any]:
    """What `datasets` says of the columns: in the file's metadata, or in a file beside it."""
    content = _json((table.schema.metadata or {}).get(b"huggingface", b"null"))
    beside = files.join(paths.parent(uri) or ".", "dataset_info.json")
    if content is None and paths.ends_with(uri, ".arrow") and files.exists(beside):
        content = {"info": _json(files.read_bytes(beside))}
    try:
        features = content["info"]["features"]
    except (TypeError, KeyError):
        return {}
    known = features.items() if isinstance(features, dict) else ()
    return {name: feature for name, feature in known if isinstance(feature, dict)}


def _check_images(uri: str, column: Any) -> None:
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{uri}: column '{column.name}' must hold encoded images (binary, or a struct with "
            f"binary 'bytes'), and it holds {column.type}"
        )
