"""A cluster on one machine: Ray head and nodes, S3 and MLflow, each its own processes."""

import contextlib
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local import description as records
from bcl_ray.ops.local import ray_nodes, tracking_server
from bcl_ray.ops.local.description import LocalDescription
from bcl_ray.ops.local.ports import LOOPBACK, answers, check_free
from bcl_ray.ops.local.postgres import Postgres
from bcl_ray.ops.local.processes import Processes
from bcl_ray.ops.local.secret import kept
from bcl_ray.ops.local.store import S3Server
from bcl_ray.ops.local.swift import Swift

SERVERS: dict[str, type[S3Server]] = {"swift": Swift}
GROUPS = ("data", "train")
FIRST_PORT = 9600
START_SECONDS = 120  # for each part; a quiet machine needs 10
KILL = (
    "import sys, time; from bcl_ray.ops.local import LocalCluster; time.sleep(float(sys.argv[3])); "
)
KILL += "cluster, name, created = LocalCluster(sys.argv[1]), sys.argv[2], float(sys.argv[4]); "
KILL += "cluster.processes.created(name) == created and cluster.kill_node(name)"  # not a new one


@dataclass(frozen=True)
class Status:
    """One process of a cluster, as a person wants to see it."""

    name: str
    pid: int | None
    address: str
    alive: bool


class LocalCluster:
    """The cluster of a folder, whether this process started it or another did.

    Args:
        folder: BCL_RAY_CLUSTER or ~/.cache/bcl_ray/cluster where it is not given.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.processes = Processes(Path(folder) if folder else records.default_folder())
        self.folder = self.processes.folder
        self._token = self.folder / "token"

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
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start it, and wait until all of it answers; where that fails, nothing is left running.

        Args:
            workers: nodes beside the head, at least 1; about a third of them for data.
            store: swift, or s3://BUCKET/PREFIX of a store that is there.
            database: behind MLflow: sqlite or postgres.
            auth: MLflow asks for a name and a password, which the environment then has.
            port: first of the 20 that it may use.
            cpus: CPUs that each node says it has.
            store_mib: object store of each node, MiB.
            say: told what a person should know.

        Raises:
            ValueError: an option is out of range.
            OSError: it is up already, a port is in use, something is not installed or does not
                start; with its last words.
        """
        _check_options(workers, store, database, cpus)
        with records.held(self.folder):
            self._clear_remains(say)
            nodes = _names(workers)
            description = LocalDescription(store, database, port, cpus, store_mib, "", nodes, auth)
            self._check_ports(description)
            # A socket's path may have 107 characters, and Ray's own part of it has 62.
            ray_folder = tempfile.mkdtemp(prefix="bcl-ray-")
            self._write(replace(description, ray_folder=ray_folder))
            try:
                kept(self._token, secrets.token_hex(32))
                self._start_all()
                self._write(replace(self._description(), ready=True))
                records.write_environment(self.folder, self.environment())
            except BaseException:
                self._clear()
                raise

    def down(self, *, wipe: bool = False) -> None:
        """End all of it; what is in S3 and MLflow stays, unless it is to be wiped.

        Raises:
            OSError: another command is starting it.
        """
        if not self.folder.exists():
            return
        with records.held(self.folder):
            self._clear()
            if wipe:
                for database in self.folder.glob("mlflow-*/postgres/data"):
                    shutil.rmtree(database.resolve(), ignore_errors=True)  # root's is elsewhere
                shutil.rmtree(self.folder)

    def environment(self) -> dict[str, str]:
        """What a client, a driver or a test sets to use it; secrets among it.

        Raises:
            OSError: no cluster is here.
        """
        description = self._description()
        ports, server = description.ports, self._server(description)
        return {
            "BCL_RAY_CLUSTER": str(self.folder),
            "BCL_RAY_GCS_ADDRESS": f"{LOOPBACK}:{ports.gcs}",
            "BCL_RAY_STORE": description.bucket,
            "RAY_ADDRESS": f"http://{LOOPBACK}:{ports.dashboard}",
            "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports.mlflow}",
            **(self._accounts(description).client() if description.auth else {}),
            **ray_nodes.common_environment(self._token),
            **(server.environment() if server else {}),
        }

    def status(self) -> list[Status]:
        """Every process that was started and not ended since."""
        if records.read(self.folder) is None:
            return []
        description = self._description()
        ports, server = description.ports, self._server(description)
        addresses = {
            "head": f"http://{LOOPBACK}:{ports.dashboard}",
            "mlflow": f"http://{LOOPBACK}:{ports.mlflow}",
        }
        found = [(name, self.processes, addresses.get(name, "")) for name in self.processes.names()]
        if server:
            names = server.processes.names()
            found += [(name, server.processes, server.endpoint) for name in names]
        prefix = {id(self.processes): ""}
        return [
            Status(
                prefix.get(id(of), f"{description.store} ") + name,
                of.pid(name),
                address,
                of.alive(name),
            )
            for name, of, address in found
        ]

    def nodes(self) -> dict[str, int]:
        """The pid of each Ray node that runs, the head's too."""
        names = ["head", *self._description().nodes]
        alive = [name for name in names if self.processes.alive(name)]
        return {name: pid for name in alive if (pid := self.processes.pid(name)) is not None}

    def kill_node(self, name: str) -> None:
        """Kill a node with all that runs on it, as a power cut would.

        Raises:
            ValueError: it is not one that runs.
        """
        self._check_runs(name)
        self.processes.kill(name)
        self._write(self._description())

    def add_node(self, name: str, group: str | None = None) -> None:
        """Start one more node, or one that has ended, and wait until it has joined.

        Args:
            name: as the cluster lists it.
            group: data or train; that of its name or of its last life where it is not given.

        Raises:
            ValueError: the group is neither, or the node runs.
        """
        description = self._description()
        group = group or description.nodes.get(name) or name.partition("-")[0]
        if group not in GROUPS:
            raise UserError(f"--group ({group}) must be data or train")
        if name == "head" or self.processes.alive(name):
            raise UserError(f"node '{name}' runs already: give another name")
        self._write(description.with_node(name, group))
        self._start_node(name)
        self._join(name)
        self._write(self._description())

    def drain_node(self, name: str, notice_seconds: int) -> None:
        """Give notice that a node ends, as a cloud does of a spot machine; then kill it.

        Returns at once. Ray takes no new work for the node, and asks Ray Train for a checkpoint.

        Raises:
            ValueError: it is not one that runs.
            OSError: Ray refuses.
        """
        self._check_runs(name)
        ports = self._description().ports
        created = self.processes.created(name)
        node = ray_nodes.node_id(name, created, ports, self._token)
        if node is None:
            raise OSError(f"the head does not know '{name}': look at `bcl-ray cluster status`")
        done = subprocess.run(  # noqa: S603 (the command is ours)
            ray_nodes.drain_command(node, notice_seconds, ports),
            env=self._node_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise OSError(f"'{name}' is not drained: {done.stderr.strip().splitlines()[-1:]}")
        given = [str(self.folder), name, str(notice_seconds), repr(created)]
        kill = [sys.executable, "-c", KILL, *given]
        self.processes.start(f"notice-{name}", kill, self._node_environment())

    def kill_head(self) -> None:
        """Kill the head with all that runs on it, drivers of jobs too; its state is kept."""
        self.processes.kill("head")

    def start_head(self) -> None:
        """Start the head again, and wait until it answers; nodes that wait for it come back."""
        self._launch_head()
        self._join("head")

    def _launch_head(self) -> None:
        description = self._description()
        ports, folder = description.ports, Path(description.ray_folder)
        # Where it is there, Ray takes the nodes that wait for the head for one that runs.
        (folder / "head" / "ray_current_cluster").unlink(missing_ok=True)
        command = ray_nodes.head_command(ports, folder / "head")
        environment = ray_nodes.head_environment(ports, folder / "gcs")
        self.processes.start("head", command, {**self._node_environment(), **environment})
        self.processes.wait("head", answers(ports.gcs), START_SECONDS)

    def stop_s3(self) -> None:
        """End the S3 server; what it has stays."""
        self._own_server().stop()

    def start_s3(self) -> None:
        """Start the S3 server again, and wait until it answers."""
        self._own_server().start()

    def stop_mlflow(self) -> None:
        """End the MLflow server; what it has stays."""
        self.processes.end("mlflow")

    def start_mlflow(self) -> None:
        """Start the MLflow server, and wait until it answers."""
        description = self._description()
        port = description.ports.mlflow
        artifacts = f"{description.bucket}/mlflow"
        command = tracking_server.command(port, artifacts, auth=description.auth)
        folder = self._mlflow_folder(description)
        environment = self._node_environment()
        if description.database == "postgres":
            database = Postgres(folder / "postgres", description.ports.postgres, self.processes)
            if not self.processes.alive("postgres"):
                database.start()
            environment |= database.environment()
            uri = database.address
        else:
            uri = tracking_server.sqlite(folder)
        environment |= tracking_server.environment(uri)
        if description.auth:
            environment |= self._accounts(description).server(uri)
        self.processes.start("mlflow", command, environment)
        self.processes.wait("mlflow", answers(port), START_SECONDS)
        if description.auth:
            self._accounts(description).ensure_client(f"http://{LOOPBACK}:{port}")

    def _mlflow_folder(self, description: LocalDescription) -> Path:
        """A database says where its artifacts are, so each store has a database of its own."""
        return self.folder / f"mlflow-{description.store.partition(':')[0]}"

    def _accounts(self, description: LocalDescription) -> tracking_server.Accounts:
        return tracking_server.Accounts(self._mlflow_folder(description))

    def _start_all(self) -> None:
        """Start the parts at the same time; the first that fails ends the others."""
        parts = (self._start_store, self._start_ray, self.start_mlflow)
        with ThreadPoolExecutor(len(parts)) as pool:
            futures = [pool.submit(part) for part in parts]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._end_all()  # else the other parts would be waited for
                raise

    def _start_store(self) -> None:
        if server := self._server(self._description()):
            server.start()
            server.make_bucket("bcl-ray")

    def _start_ray(self) -> None:
        self._launch_head()
        names = list(self._description().nodes)
        for name in names:
            self._start_node(name)
        for name in ("head", *names):
            self._join(name)

    def _start_node(self, name: str) -> None:
        description = self._description()
        command = ray_nodes.worker_command(
            name,
            description.nodes[name],
            cpus=description.cpus,
            store_mib=description.store_mib,
            ports=description.ports,
            temporary=Path(description.ray_folder) / name,
        )
        self.processes.start(name, command, self._node_environment())

    def _join(self, name: str) -> None:
        since, ports = self.processes.created(name), self._description().ports
        joined = ray_nodes.registered(name, since, ports, self._token)
        self.processes.wait(name, joined, START_SECONDS)

    def _node_environment(self) -> dict[str, str]:
        own = self._server(self._description()) is not None
        there = {name: value for name, value in self.environment().items() if name != "RAY_ADDRESS"}
        return {**ray_nodes.machine_environment(keep=() if own else ("AWS_",)), **there}

    def _server(self, description: LocalDescription) -> S3Server | None:
        server = SERVERS.get(description.store)
        return server(self.folder / description.store, description.ports.s3) if server else None

    def _own_server(self) -> S3Server:
        description = self._description()
        server = self._server(description)
        if server is None:
            raise UserError(f"{description.store} is not a server of this cluster")
        return server

    def _description(self) -> LocalDescription:
        found = records.read(self.folder)
        if found is None:
            raise OSError(f"no cluster is in {self.folder}: start one with `bcl-ray cluster up`")
        return found

    def _write(self, description: LocalDescription) -> None:
        pids = {name: self.processes.pid(name) for name in self.processes.names()}
        ports = description.ports
        addresses = {
            "dashboard": f"http://{LOOPBACK}:{ports.dashboard}",
            "gcs": f"{LOOPBACK}:{ports.gcs}",
            "mlflow": f"http://{LOOPBACK}:{ports.mlflow}",
            "bucket": description.bucket,
        }
        records.write(self.folder, description, {"addresses": addresses, "pids": pids})

    def _check_ports(self, description: LocalDescription) -> None:
        ports, server = description.ports, self._server(description)
        wanted = {**ports.head(), "MLflow": ports.mlflow}
        if description.database == "postgres":
            wanted["PostgreSQL"] = ports.postgres
        for number in server.ports if server else []:
            wanted[f"S3 {number}"] = number
        check_free(wanted)

    def _check_runs(self, name: str) -> None:
        running = [node for node in self.nodes() if node != "head"]
        if name not in running:
            raise UserError(f"no node '{name}' runs; there is: {', '.join(running) or 'none'}")

    def _clear_remains(self, say: Callable[[str], None]) -> None:
        """End and forget what a cluster that was not taken down has left, or refuse one that is up.

        Raises:
            OSError: it is up.
        """
        found = records.read(self.folder)
        if found is None:
            return
        alive = self.processes.any_alive()
        if alive and found.ready:
            raise OSError(
                f"a cluster is up in {self.folder}: `bcl-ray cluster down` ends it, --folder "
                "starts another beside it"
            )
        say("clearing what a cluster that was not taken down has left")
        self._clear()

    def _end_all(self) -> None:
        self.processes.end(*self.processes.names(), patience=5)
        found = records.read(self.folder)
        if found and (server := self._server(found)):
            server.stop()

    def _clear(self) -> None:
        self._end_all()
        found = records.read(self.folder)
        if found and found.ray_folder:
            shutil.rmtree(found.ray_folder, ignore_errors=True)
        for name in ("cluster.json", "environment", "token"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()


def _check_options(workers: int, store: str, database: str, cpus: int) -> None:
    if workers < 1:
        raise UserError(f"--workers ({workers}) must be at least 1")
    if cpus < 1:
        raise UserError(f"--cpus ({cpus}) must be at least 1")
    if store not in SERVERS and not store.startswith("s3://"):
        raise UserError(f"--store ({store}) must be swift or s3://BUCKET/PREFIX")
    if database not in ("sqlite", "postgres"):
        raise UserError(f"--database ({database}) must be sqlite or postgres")


def _names(workers: int) -> dict[str, str]:
    """Group by name: a third of the nodes for data, at least one where there are two."""
    data = max(workers // 3, min(1, workers - 1))
    counts = {"data": data, "train": workers - data}
    return {f"{group}-{n}": group for group in GROUPS for n in range(1, counts[group] + 1)}
