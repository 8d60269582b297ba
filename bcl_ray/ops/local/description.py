"""What a cluster's folder says of it: cluster.json for programs, `environment` for shells."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local.ray_nodes import Ports
from bcl_ray.ops.local.secret import write_private

DEFAULT_FOLDER = "~/.cache/bcl_ray/cluster"


@dataclass(frozen=True)
class LocalDescription:
    """A cluster: what it was asked to be, and where it is. No secrets.

    Args:
        store: swift, or the s3:// address of somebody else's store.
        database: sqlite or postgres.
        first_port: of a row of 20.
        cpus: CPUs that each node says it has.
        store_mib: object store of each node, MiB.
        ray_folder: of the nodes' temporary folders.
        nodes: group (data or train) of each worker node.
        auth: whether MLflow asks for a name and a password.
        ready: False while it is starting.
    """

    store: str
    database: str
    first_port: int
    cpus: int
    store_mib: int
    ray_folder: str
    nodes: Mapping[str, str]
    auth: bool = False
    ready: bool = False

    @property
    def ports(self) -> Ports:
        """Its ports."""
        return Ports(self.first_port)

    @property
    def bucket(self) -> str:
        """The s3:// address under which data and runs may be kept."""
        return self.store if self.store.startswith("s3://") else "s3://bcl-ray"

    def with_node(self, name: str, group: str) -> "LocalDescription":
        """The same with one node more."""
        return replace(self, nodes={**self.nodes, name: group})


def default_folder() -> Path:
    """BCL_RAY_CLUSTER, or the one below the user's home."""
    return Path(os.environ.get("BCL_RAY_CLUSTER") or DEFAULT_FOLDER)


def write(folder: Path, description: LocalDescription, found: Mapping[str, object]) -> None:
    """Write cluster.json.

    Args:
        found: addresses and pids, which change as the cluster lives.
    """
    text = json.dumps({**asdict(description), **found}, indent=1)
    write_private(folder / "cluster.json", text + "\n")


def read(folder: Path) -> LocalDescription | None:
    """What cluster.json says; None where there is none.

    Raises:
        ValueError: it is not of this version.
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
    """Write what `source` takes, for its owner alone: it holds the object store's key."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    write_private(folder / "environment", "\n".join(lines) + "\n")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other commands from starting or ending the cluster for as long as the block lasts.

    Raises:
        OSError: another command does so now.
    """
    import fcntl  # noqa: PLC0415 (not on Windows, where this module is imported too)

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"another command is starting or ending the cluster of {folder}: wait for it"
            ) from None
        yield
