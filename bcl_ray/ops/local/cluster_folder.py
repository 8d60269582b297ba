"""What a cluster's folder holds: cluster.json for programs, `environment` for shells."""

import fcntl
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local.ports import Ports
from bcl_ray.ops.local.secret import write_private

DEFAULT_FOLDER = "~/.cache/bcl_ray/cluster"
GROUPS = ("data", "train")


@dataclass(frozen=True)
class LocalDescription:
    """The options that a cluster was started with, and its state. It holds no secrets."""

    store: str
    """swift, or s3://BUCKET/PREFIX of an existing store."""
    database: str
    """The database behind MLflow: sqlite or postgres."""
    first_port: int
    """First of 20 consecutive ports."""
    cpus: int
    """Number of CPUs that each node declares."""
    store_mib: int
    """Size of Ray's object store on each node, in MiB."""
    ray_folder: str
    """Folder of the nodes' temporary folders."""
    nodes: Mapping[str, str]
    """The group of each worker node, data or train, by the node's name."""
    auth: bool = False
    """Whether MLflow asks for a name and a password."""
    ready: bool = False
    """False while the cluster is starting."""

    @property
    def ports(self) -> Ports:
        """The ports of the cluster."""
        return Ports(self.first_port)

    @property
    def store_uri(self) -> str:
        """The s3:// URI under which data and runs may be stored."""
        return self.store if self.store.startswith("s3://") else "s3://bcl-ray"

    def with_node(self, name: str, group: str) -> "LocalDescription":
        """The same description with one more node."""
        return replace(self, nodes={**self.nodes, name: group})


def node_groups(workers: int) -> dict[str, str]:
    """The group of each node, by name: about a third is for data, at least one for each group.

    A single node is for training.
    """
    data = max(workers // 3, min(1, workers - 1))
    counts = {"data": data, "train": workers - data}
    return {f"{group}-{n}": group for group in GROUPS for n in range(1, counts[group] + 1)}


def default_folder() -> Path:
    """The folder that BCL_RAY_CLUSTER names, else one in the user's cache."""
    return Path(os.environ.get("BCL_RAY_CLUSTER") or DEFAULT_FOLDER)


def write(folder: Path, description: LocalDescription) -> None:
    """Write cluster.json."""
    write_private(folder / "cluster.json", json.dumps(asdict(description), indent=1) + "\n")


def read(folder: Path) -> LocalDescription | None:
    """The description in cluster.json; None if there is no such file.

    Raises:
        ValueError: The file cannot be read, or another version of bcl_ray wrote it.
    """
    file = folder / "cluster.json"
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text())
        return LocalDescription(
            **{name: record[name] for name in LocalDescription.__dataclass_fields__}
        )
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} cannot be read: delete {folder}") from None


def write_environment(folder: Path, environment: Mapping[str, str]) -> None:
    """Write the file for the shell's `source`; only its owner can read it, for it holds keys."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    write_private(folder / "environment", "\n".join(lines) + "\n")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other commands from starting or ending the cluster during the block.

    Raises:
        OSError: Another command is starting or ending it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"another command is starting or ending the cluster of {folder}: wait for it"
            ) from None
        yield
