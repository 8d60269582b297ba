"""The manifest: all that is known of a data set without opening a shard."""

import hashlib
import json
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError

from bcl_ray.experiment.choices import Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

MANIFEST = "manifest.json"
INCOMPLETE = "incomplete.txt"  # marks a folder's files as ours until the manifest is there
FORMAT_VERSION = 1

Progress = Callable[[str, int, int], None]  # ("reading train", rows done, rows in all)


def no_progress(stage: str, done: int, rows: int) -> None:
    """The progress that shows nothing."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Record):
    """One Parquet file: its name in the folder, rows, bytes and SHA-256."""

    file: str
    rows: int
    bytes: int
    sha256: str


class Split(_Record):
    """One split. Every row group has `row_group_rows` rows, but the last of each shard."""

    rows: int
    class_counts: tuple[int, ...]
    row_group_rows: int
    shards: tuple[ShardInfo, ...]
    quarantined: int = 0


class ProfileInfo(_Record):
    """How the training split was chosen, and the seed of that choice and of the shuffle."""

    name: Profile
    imbalance_factor: float | None
    max_per_class: int | None
    seed: int


class Manifest(_Record):
    """All that is known of a data set without opening a shard."""

    format_version: int
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    source: str
    profile: ProfileInfo
    fingerprint: str

    def content_fingerprint(self) -> str:
        """SHA-256 over everything else in the manifest, and so over every shard's bytes."""
        content = self.model_dump(mode="json", exclude={"fingerprint"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(uri: str) -> Manifest:
    """The manifest of a data set's folder.

    Raises:
        ValueError: no manifest, another format version, or a manifest that was changed.
    """
    manifest = load_manifest(uri)
    content = manifest.content_fingerprint()
    if manifest.fingerprint != content:
        raise UserError(
            f"{files.join(uri, MANIFEST)} was changed after it was written: its fingerprint is "
            f"{manifest.fingerprint[:12]}, its content gives {content[:12]}; restore it, or "
            "shard again"
        )
    return manifest


def load_manifest(uri: str) -> Manifest:
    """A manifest whose fingerprint may not fit its content; else as `read_manifest`."""
    file = files.join(uri, MANIFEST)
    try:
        content = json.loads(files.read_bytes(file))
    except FileNotFoundError:
        files.check_usable(uri, "list")  # a bucket that is not there is another matter
        cut = files.exists(files.join(uri, INCOMPLETE))
        why = "sharding was interrupted: run it again" if cut else "write one with `bcl-ray shard`"
        raise UserError(f"{uri} holds no {MANIFEST}, so it is not a data set; {why}") from None
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
