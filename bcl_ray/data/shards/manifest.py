"""The manifest: what is known about a data set without opening a shard.

manifest.json            classes, splits and the profile, for people and programs; written last
manifest.shards.parquet  rows, bytes and SHA-256 of each shard: a row group for each split, in the
                         order of the JSON file, which holds this file's SHA-256

Format version 1 had the shards in the JSON file: 430,000 of them took 8 s and 535 MB to read, and
take 1 s and 120 MB now (measured 2026-11).
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    InstanceOf,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from bcl_ray.data.shards.columns import NumberedNames, ShardColumns, ShardInfo
from bcl_ray.experiment.choices import Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

MANIFEST, SHARDS_FILE = "manifest.json", "manifest.shards.parquet"
INCOMPLETE = "incomplete.txt"  # marks a folder that `bcl-ray shard` writes to, until it is complete
FORMAT_VERSION = 2
SHARDS_SCHEMA = pa.schema(
    [
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_columns(shards: Any) -> Any:
    """Entries of shards, as format version 1 has them, as columns."""
    return (
        shards
        if isinstance(shards, ShardColumns)
        else ShardColumns.of(_ENTRIES.validate_python(shards))
    )


_ENTRIES = TypeAdapter(tuple[ShardInfo, ...])


class Split(_Record):
    """One split."""

    rows: int
    class_counts: tuple[int, ...]
    row_group_rows: int  # of every row group, except for the last of each shard
    shards: Annotated[
        InstanceOf[ShardColumns],
        BeforeValidator(_as_columns),
        PlainSerializer(len, return_type=int),  # JSON has their number
    ]
    quarantined: int = 0  # bad rows that were left out


class ProfileInfo(_Record):
    """How the training images were selected, and the seed of the selection and of the shuffle."""

    name: Profile
    imbalance_factor: float | None
    max_per_class: int | None
    seed: int


class Manifest(_Record):
    """All that is known about a data set without opening a shard."""

    format_version: int = FORMAT_VERSION
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    source: str
    profile: ProfileInfo
    shards_sha256: str | None = None  # of SHARDS_FILE; format version 1 has no such file
    fingerprint: str


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's JSON content without its fingerprint.

    As that has hashes of the shards, or a hash of these hashes, it covers the content of shards.
    """
    rest = {name: value for name, value in content.items() if name != "fingerprint"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(uri: str, manifest: Manifest) -> Manifest:
    """Write a manifest into a data set's folder, in today's format.

    Args:
        manifest: What it holds; its format version, hash of shards and fingerprint are set here.

    Returns:
        The manifest as it was written.

    Raises:
        FileExistsError: There is one already.
        OSError: The folder cannot be written.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SHARDS_SCHEMA, compression="zstd") as writer:
        for split in manifest.splits.values():
            shards = split.shards
            hashes = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), len(shards), [None, pa.py_buffer(shards.sha256.tobytes())]
            )
            columns = [pa.array(shards.rows), pa.array(shards.bytes), hashes]
            writer.write_batch(pa.record_batch(columns, schema=SHARDS_SCHEMA), len(shards))
    hash_of_shards = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest = with_fingerprint(
        manifest.model_copy(
            update={"format_version": FORMAT_VERSION, "shards_sha256": hash_of_shards}
        )
    )
    files.write_bytes(files.join(uri, SHARDS_FILE), buffer.getvalue())
    files.create_bytes(files.join(uri, MANIFEST), manifest.model_dump_json(indent=2).encode())
    return manifest


def with_fingerprint(manifest: Manifest) -> Manifest:
    """The manifest with the fingerprint of its content."""
    fingerprint = fingerprint_of(manifest.model_dump(mode="json"))
    return manifest.model_copy(update={"fingerprint": fingerprint})


def read_manifest(uri: str) -> Manifest:
    """Read the manifest of a data set's folder, and check its fingerprint.

    Raises:
        ValueError: There is no manifest, it has another format version, or it was changed.
    """
    manifest, fingerprint = load_manifest(uri)
    if manifest.fingerprint != fingerprint:
        raise UserError(
            f"{files.join(uri, MANIFEST)} was changed after it was written: its fingerprint is "
            f"{manifest.fingerprint[:12]}, its content gives {fingerprint[:12]}; restore it, or "
            "shard again"
        )
    return manifest


def load_manifest(uri: str) -> tuple[Manifest, str]:
    """Read a manifest, and compute the fingerprint of its content without comparing them.

    Raises:
        ValueError: There is no manifest, it has another format version, or it cannot be read.
    """
    file, content = files.join(uri, MANIFEST), _read_json(uri)
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version not in _WITH_SHARDS:
        known = " and ".join(str(number) for number in _WITH_SHARDS)
        raise UserError(
            f"{file} has format version {version}, and this bcl-ray reads {known}: shard again"
        )
    fingerprint = fingerprint_of(content)
    try:
        return Manifest.model_validate(_WITH_SHARDS[version](uri, content)), fingerprint
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: {name}: {first['msg']}; restore it, or shard again") from None


def _read_json(uri: str) -> Any:
    file = files.join(uri, MANIFEST)
    try:
        return json.loads(files.read_bytes(file))
    except FileNotFoundError:
        files.check_usable(uri, "list")  # a missing bucket has an error message of its own
        if files.exists(files.join(uri, INCOMPLETE)):
            hint = "sharding was interrupted: run it again"
        else:
            hint = "write one with `bcl-ray shard`"
        raise UserError(f"{uri} holds no {MANIFEST}, so it is not a data set; {hint}") from None
    except ValueError:
        raise UserError(f"{file} is not JSON: restore it, or shard again") from None


def _with_shards_of_file(uri: str, content: dict[str, Any]) -> dict[str, Any]:
    """The JSON content with the columns of SHARDS_FILE in place of the numbers of shards."""
    file = files.join(uri, SHARDS_FILE)
    try:
        data = files.read_bytes(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: restore it, or shard again") from None
    if hashlib.sha256(data).hexdigest() != content.get("shards_sha256"):
        raise UserError(
            f"{file} is not the one that {MANIFEST} was written with: restore both, or shard again"
        )
    table = pq.ParquetFile(pa.BufferReader(data))
    splits = content.get("splits")
    if not isinstance(splits, dict) or len(splits) != table.num_row_groups:
        raise UserError(
            f"{files.join(uri, MANIFEST)}: splits are not the {table.num_row_groups} of "
            f"{SHARDS_FILE}: restore it, or shard again"
        )
    columns = {
        name: _columns(table.read_row_group(number, use_threads=False), name)
        for number, name in enumerate(splits)
    }
    splits = {
        name: {**split, "shards": columns[name]} if isinstance(split, dict) else split
        for name, split in splits.items()
    }
    return {**content, "splits": splits}


def _columns(table: pa.Table, split: str) -> ShardColumns:
    rows, sizes, hashes = (column.combine_chunks() for column in table.columns)
    sha256 = np.frombuffer(hashes.buffers()[1], np.uint8).reshape(len(rows), 32)
    return ShardColumns(NumberedNames(split, len(rows)), rows.to_numpy(), sizes.to_numpy(), sha256)


# By format version: adds the shards to the content of manifest.json.
_WITH_SHARDS: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    1: lambda _, content: content,
    2: _with_shards_of_file,
}
