"""The manifest: a JSON file that describes a data set and its shards."""

import hashlib
import json
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError

from bcl_ray.experiment.choices import Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

MANIFEST = "manifest.json"
INCOMPLETE = "incomplete.txt"  # marks a folder that `bcl-ray shard` writes to, until it is complete
FORMAT_VERSION = 1

Progress = Callable[[str, int, int], None]  # ("reading train", rows done, rows in total)


def no_progress(stage: str, done: int, rows: int) -> None:
    """A `Progress` that shows nothing."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Record):
    """One Parquet file."""

    file: str  # name in the data set's folder
    rows: int
    bytes: int
    sha256: str


class Split(_Record):
    """One split."""

    rows: int
    class_counts: tuple[int, ...]
    row_group_rows: int  # of every row group, except for the last of each shard
    shards: tuple[ShardInfo, ...]
    quarantined: int = 0  # bad rows that were left out


class ProfileInfo(_Record):
    """How the training images were selected, and the seed of the selection and of the shuffle."""

    name: Profile
    imbalance_factor: float | None
    max_per_class: int | None
    seed: int


class Manifest(_Record):
    """All that is known about a data set without opening a shard."""

    format_version: int
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    source: str
    profile: ProfileInfo
    fingerprint: str

    def content_fingerprint(self) -> str:
        """SHA-256 of all other fields. As these have shards' hashes, it covers their content."""
        content = self.model_dump(mode="json", exclude={"fingerprint"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(uri: str) -> Manifest:
    """Read the manifest of a data set's folder, and check its fingerprint.

    Raises:
        ValueError: There is no manifest, it has another format version, or it was changed.
    """
    manifest = load_manifest(uri)
    fingerprint = manifest.content_fingerprint()
    if manifest.fingerprint != fingerprint:
        raise UserError(
            f"{files.join(uri, MANIFEST)} was changed after it was written: its fingerprint is "
            f"{manifest.fingerprint[:12]}, its content gives {fingerprint[:12]}; restore it, or "
            "shard again"
        )
    return manifest


def load_manifest(uri: str) -> Manifest:
    """Read a manifest without checking its fingerprint; otherwise like `read_manifest`."""
    file = files.join(uri, MANIFEST)
    try:
        content = json.loads(files.read_bytes(file))
    except FileNotFoundError:
        files.check_usable(uri, "list")  # a missing bucket has an error message of its own
        if files.exists(files.join(uri, INCOMPLETE)):
            hint = "sharding was interrupted: run it again"
        else:
            hint = "write one with `bcl-ray shard`"
        raise UserError(f"{uri} holds no {MANIFEST}, so it is not a data set; {hint}") from None
    except ValueError:
        raise UserError(f"{file} is not JSON: restore it, or shard again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {version}, and this bcl-ray reads {FORMAT_VERSION}: "
            "shard again"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: {name}: {first['msg']}; restore it, or shard again") from None
