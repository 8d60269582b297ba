"""A cluster on one machine: Ray head and nodes, an S3 server and an MLflow server."""

import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local import cluster_folder
from bcl_ray.ops.local.cluster_folder import GROUPS, LocalDescription, node_groups
from bcl_ray.ops.local.parts import SWITCHES, Parts, check_options
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import Processes
from bcl_ray.ops.local.secret import write_private

FIRST_PORT = 9600
# Runs in a process of its own, which outlives the command that gave notice.
KILL_LATER = """
import sys, time
from bcl_ray.ops.local import LocalCluster
folder, name, seconds, created = sys.argv[1:]
time.sleep(float(seconds))
cluster = LocalCluster(folder)
if cluster.processes.created(name) == float(created):  # else a new node has the name
    cluster.kill_node(name)
"""


@dataclass(frozen=True)
class Status:
    """State of one process of a cluster."""

    name: str
    pid: int | None
    address: str
    """URL at which it is reached; empty for most."""
    alive: bool


class LocalCluster:
    """The cluster of a folder, whether this process or another has started it.

    Args:
        folder: Folder of the cluster; by default BCL_RAY_CLUSTER or ~/.cache/bcl_ray/cluster.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.parts = Parts(Path(folder) if folder else cluster_folder.default_folder())
        self.processes = self.parts.processes
        self.folder = self.parts.folder

    def up(
        self,
        workers: int = 3,
        *,
        store: str = "swift",
        database: str = "sqlite",
        auth: bool = False,
        port: int = FIRST_PORT,
        cpus: int = 2,
        store_mib: int = 512,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start the cluster, and wait until all parts answer. If one fails, all are ended again.

        Args:
            workers: Number of nodes beside the head, at least 1; about a third is for data.
            store: swift, or s3://BUCKET/PREFIX of an existing store.
            database: Database behind MLflow: sqlite or postgres.
            auth: Let MLflow ask for a name and a password, which `environment` has.
            port: First of 20 consecutive ports.
            cpus: Number of CPUs that each node declares.
            store_mib: Size of Ray's object store on each node, in MiB.
            notify: Called with messages for a person.

        Raises:
            ValueError: An option is out of range.
            OSError: The cluster runs already, a port is in use, or a program is not installed or
                does not start; with its last line of output.
        """
        check_options(workers, store, database, cpus)
        with cluster_folder.lock(self.folder):
            self._clear_remains(notify)
            nodes = node_groups(workers)
            description = LocalDescription(store, database, port, cpus, store_mib, "", nodes, auth)
            self.parts.check_ports(description)
            # Not below self.folder: a socket's path has at most 107 characters, and Ray adds 62.
            description = replace(description, ray_folder=tempfile.mkdtemp(prefix="bcl-ray-"))
            self.parts.write(description)
            try:
                write_private(self.parts.token_file, secrets.token_hex(32))
                self.parts.start_all()
                self.parts.write(replace(self.parts.description(), ready=True))
                cluster_folder.write_environment(self.folder, self.environment())
            except BaseException:
                self.parts.clear()
                raise

    def down(self, *, wipe: bool = False) -> None:
        """End the cluster; the data of S3 and MLflow stay.

        Args:
            wipe: Delete the data too.

        Raises:
            OSError: Another command is starting or ending the cluster.
        """
        if not self.folder.exists():
            return
        with cluster_folder.lock(self.folder):
            self.parts.clear()
            if wipe:
                for link in self.folder.glob("mlflow-*/postgres/data"):
                    shutil.rmtree(link.resolve(), ignore_errors=True)  # it may lead elsewhere
                shutil.rmtree(self.folder)

    def environment(self) -> dict[str, str]:
        """Environment variables of clients, drivers and tests; secrets are among them.

        Raises:
            OSError: The folder has no cluster.
        """
        return self.parts.client_environment()

    def status(self) -> list[Status]:
        """Every process that was started and not ended since, dead ones too."""
        description = cluster_folder.read(self.folder)
        if description is None:
            return []
        addresses = {
            "head": f"http://{LOOPBACK}:{description.ports.dashboard}",
            "mlflow": self.parts.mlflow().uri,
        }

        def row(processes: Processes, name: str, label: str, address: str) -> Status:
            return Status(label, processes.pid(name), address, processes.alive(name))

        own = self.processes
        rows = [row(own, name, name, addresses.get(name, "")) for name in own.names()]
        if server := self.parts.s3_server(description):
            rows += [
                row(server.processes, name, f"{description.store} {name}", server.endpoint)
                for name in server.processes.names()
            ]
        return rows

    def nodes(self) -> dict[str, int]:
        """The pid of each Ray node that runs, the head included, by name."""
        names = ["head", *self.parts.description().nodes]
        alive = [name for name in names if self.processes.alive(name)]
        return {name: pid for name in alive if (pid := self.processes.pid(name)) is not None}

    def training_workers(self) -> Mapping[str, int]:
        """Number of training workers on each node that has some; empty if the head is silent."""
        try:
            return self.parts.ray().training_workers()
        except (OSError, ValueError, KeyError, TypeError):  # a starting head may answer anything
            return {}

    def kill_node(self, name: str) -> None:
        """Kill a node with everything that runs on it, as a power cut would.

        Raises:
            ValueError: No such node runs.
        """
        self._check_runs(name)
        self.processes.kill(name)

    def add_node(self, name: str, group: str | None = None) -> None:
        """Start a new node, or one that has ended, and wait until it has joined.

        Args:
            name: Name of the node.
            group: data or train; by default the node's former group, or the one in its name.

        Raises:
            ValueError: The group is neither, or the node runs already.
        """
        description = self.parts.description()
        group = group or description.nodes.get(name) or name.partition("-")[0]
        if group not in GROUPS:
            raise UserError(f"--group ({group}) must be {' or '.join(GROUPS)}")
        if name == "head" or self.processes.alive(name):
            raise UserError(f"node '{name}' runs already: choose another name")
        self.parts.write(description.with_node(name, group))
        ray = self.parts.ray()
        ray.start_worker(name)
        ray.wait_until_joined(name)

    def drain_node(self, name: str, notice_seconds: int) -> None:
        """Announce that a node will end, as a cloud does for a spot machine; kill it after that.

        Returns at once. Ray gives the node no new work, and asks Ray Train for a checkpoint.

        Raises:
            ValueError: No such node runs.
            OSError: Ray refuses.
        """
        self._check_runs(name)
        created = self.processes.created(name)
        self.parts.ray().drain(name, notice_seconds)
        arguments = [str(self.folder), name, str(notice_seconds), repr(created)]
        kill = [sys.executable, "-c", KILL_LATER, *arguments]
        self.processes.start(f"notice-{name}", kill, self.parts.node_environment())

    def stop(self, part: str) -> None:
        """End one of SWITCHES, whose data stay; the head is killed, with all that runs on it.

        Raises:
            ValueError: The cluster has no such part of its own.
        """
        SWITCHES[part].stop(self.parts)

    def start(self, part: str) -> None:
        """Start one of SWITCHES again, and wait until it answers; waiting nodes join the new head.

        Raises:
            ValueError: The cluster has no such part of its own.
        """
        SWITCHES[part].start(self.parts)

    def _check_runs(self, name: str) -> None:
        running = [node for node in self.nodes() if node != "head"]
        if name not in running:
            raise UserError(f"no node '{name}' runs; there is: {', '.join(running) or 'none'}")

    def _clear_remains(self, notify: Callable[[str], None]) -> None:
        """Clear what a cluster without a regular end has left.

        Raises:
            OSError: The cluster is up.
        """
        description = cluster_folder.read(self.folder)
        if description is None:
            return
        if description.ready and self.processes.any_alive():
            raise OSError(
                f"a cluster is up in {self.folder}: `bcl-ray cluster down` ends it, --folder "
                "starts another beside it"
            )
        notify("clearing what a cluster that was not taken down has left")
        self.parts.clear()
