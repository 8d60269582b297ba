"""The identity of a run, a search or a study: what its folder records when it begins.

The folder holds a JSON file (run.json, search.json or study.json) and the configuration,
experiment.yaml. What it holds is resumed only with the configuration and the data that it began
with.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_stored
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

EXPERIMENT_FILE = "experiment.yaml"


@dataclass(frozen=True)
class Kind:
    """What distinguishes runs, searches and studies in files and messages."""

    noun: str
    file: str  # a folder without this JSON file holds nothing of this kind
    command: str
    name_option: str
    mutable: str  # options that may change on --resume


RUN = Kind(
    noun="run",
    file="run.json",
    command="bcl-ray train",
    name_option="tracking.run=NAME",
    mutable="data.path, data.residency, scale.* and tracking.*",
)
SEARCH = Kind(
    noun="search",
    file="search.json",
    command="bcl-ray search",
    name_option="--name NAME",
    mutable="--trials, --workers-per-trial, --max-concurrent, --gpus-per-worker, --confirm, "
    "data.path, scale.* and tracking.*",
)
STUDY = Kind(
    noun="study",
    file="study.json",
    command="bcl-ray study",
    name_option="--name NAME",
    mutable="data.path, scale.* and tracking.*, and new cells and seeds,",
)
KINDS = (RUN, SEARCH, STUDY)


@dataclass(frozen=True)
class Identity:
    """Identity of a run, a search or a study."""

    kind: ClassVar[Kind]

    uri: str  # its folder
    uid: str  # 32 random hex digits; a tag in MLflow, stable over resumes
    digest: str  # hash of the configuration
    fingerprint: str  # hash of the data

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return paths.name(self.uri)

    def check_unedited(self, digest: str) -> None:
        """Refuse a folder whose files now give another digest than the recorded one.

        Raises:
            UserError: They were edited.
        """
        if digest != self.digest:
            raise UserError(
                f"{files.join(self.uri, EXPERIMENT_FILE)} or {self.kind.file} is not what "
                f"{self.kind.noun} '{self.name}' began with (digest {digest}, was {self.digest}): "
                f"restore it, or begin another {self.kind.noun}"
            )

    def name_taken(self, digest: str, reference: str) -> UserError:
        """The error for a new run or search whose folder holds this one.

        Args:
            digest: Hash of the new one's configuration.
            reference: Argument of --resume that continues this one.
        """
        same = digest == self.digest
        resume = f"go on with --resume {reference}, or " if same else ""
        return UserError(
            f"{self.kind.noun} '{self.name}' exists in "
            f"{paths.for_display(paths.split(self.uri)[0])} with {'this' if same else 'another'} "
            f"configuration: {resume}give the new {self.kind.noun} another name "
            f"({self.kind.name_option})"
        )

    def configuration_changed(self, difference: str) -> UserError:
        """The error for a resume with another configuration, which differs as described."""
        return UserError(
            f"{self.kind.noun} '{self.name}' was begun with another configuration "
            f"({difference}): only {self.kind.mutable} may change on --resume"
        )

    def check_data(self, path: str, fingerprint: str) -> None:
        """Refuse to resume with other data.

        Args:
            path: Value of data.path.
            fingerprint: Hash of the data there.

        Raises:
            UserError: They differ from the data that this one began with.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"data.path {path} holds other data (fingerprint {fingerprint[:12]}) than "
                f"{self.kind.noun} '{self.name}' was begun with ({self.fingerprint[:12]})"
            )


def new_uid() -> str:
    """A random identity, 32 hex digits."""
    return secrets.token_hex(16)


def check_holds_no_other(uri: str, kind: Kind) -> None:
    """Refuse a folder that holds something of another kind.

    Raises:
        UserError: It does.
    """
    for other in KINDS:
        if other is not kind and files.exists(files.join(uri, other.file)):
            raise UserError(
                f"--name: {paths.for_display(uri)} holds a {other.noun}: give the {kind.noun} "
                "another name"
            )


def write_experiment(uri: str, experiment: Experiment) -> None:
    """Write experiment.yaml."""
    files.write_bytes(files.join(uri, EXPERIMENT_FILE), experiment.to_yaml().encode())


def write(identity: Identity, more: Mapping[str, Any] | None = None) -> None:
    """Write the JSON file, which makes the folder a valid one; experiment.yaml comes before it.

    Args:
        identity: What the folder holds.
        more: Content beside uid, digest and fingerprint.
    """
    content = {name: getattr(identity, name) for name in ("uid", "digest", "fingerprint")}
    text = json.dumps({**content, **(more or {})}, indent=1)
    files.write_bytes(files.join(identity.uri, identity.kind.file), text.encode())


def read(uri: str, kind: Kind) -> tuple[dict[str, Any], Experiment]:
    """Read the content of a folder's JSON file, and its experiment.

    Raises:
        UserError: The folder holds nothing of this kind, or one of its files was edited.
    """
    file = files.join(uri, kind.file)
    try:
        content = json.loads(files.read_bytes(file))
        if not {"uid", "digest", "fingerprint"} <= content.keys():
            raise ValueError
    except FileNotFoundError:
        raise UserError(
            f"{paths.for_display(uri)} holds no {kind.noun} (no {kind.file}): name one that "
            f"`{kind.command}` began, or set tracking.runs to where it is"
        ) from None
    except (AttributeError, ValueError):
        raise UserError(
            f"{file} is not as `{kind.command}` wrote it: restore it, or begin another {kind.noun}"
        ) from None
    file = files.join(uri, EXPERIMENT_FILE)
    return content, from_stored(files.read_bytes(file).decode(), origin=file)
