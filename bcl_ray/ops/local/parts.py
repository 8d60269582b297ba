"""The parts of a local cluster: Ray, an S3 server and MLflow, as its description has them."""

import contextlib
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.local import cluster_folder
from bcl_ray.ops.local.cluster_folder import LocalDescription
from bcl_ray.ops.local.ports import LOOPBACK, check_free
from bcl_ray.ops.local.processes import Processes
from bcl_ray.ops.local.ray_commands import common_environment, machine_environment
from bcl_ray.ops.local.ray_nodes import RayNodes
from bcl_ray.ops.local.store import S3Server
from bcl_ray.ops.local.swift import Swift
from bcl_ray.ops.local.tracking_server import DATABASES, TrackingServer

S3_SERVERS: dict[str, type[S3Server]] = {"swift": Swift}


class Parts:
    """The parts of the cluster in a folder.

    The description is read from the folder each time, for another process may have changed it.
    """

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder)
        self.folder = self.processes.folder
        self.token_file = self.folder / "token"

    def description(self) -> LocalDescription:
        """The description of the cluster.

        Raises:
            OSError: The folder has no cluster.
        """
        description = cluster_folder.read(self.folder)
        if description is None:
            raise OSError(f"no cluster is in {self.folder}: start one with `bcl-ray cluster up`")
        return description

    def write(self, description: LocalDescription) -> None:
        """Write cluster.json."""
        cluster_folder.write(self.folder, description)

    def ray(self) -> RayNodes:
        """The Ray head and nodes."""
        environment = self.node_environment()
        return RayNodes(self.processes, self.description(), self.token_file, environment)

    def mlflow(self) -> TrackingServer:
        """The MLflow server."""
        return TrackingServer(self.folder, self.description(), self.processes)

    def s3_server(self, description: LocalDescription) -> S3Server | None:
        """The cluster's own S3 server; None if it uses another store."""
        server = S3_SERVERS.get(description.store)
        return server(self.folder / description.store, description.ports.s3) if server else None

    def own_s3_server(self) -> S3Server:
        """The cluster's own S3 server.

        Raises:
            ValueError: The cluster uses another store.
        """
        description = self.description()
        server = self.s3_server(description)
        if server is None:
            raise UserError(f"{description.store} is not a server of this cluster")
        return server

    def client_environment(self) -> dict[str, str]:
        """Environment variables of clients, drivers and tests; secrets are among them."""
        description = self.description()
        ports, server = description.ports, self.s3_server(description)
        return {
            "BCL_RAY_CLUSTER": str(self.folder),
            "BCL_RAY_GCS_ADDRESS": f"{LOOPBACK}:{ports.gcs}",
            "BCL_RAY_STORE": description.store_uri,
            "RAY_ADDRESS": f"http://{LOOPBACK}:{ports.dashboard}",
            **self.mlflow().client_environment(),
            **common_environment(self.token_file),
            **(server.environment() if server else {}),
        }

    def node_environment(self) -> dict[str, str]:
        """Environment variables of the cluster's own processes."""
        has_own_store = self.s3_server(self.description()) is not None
        cluster = self.client_environment()
        del cluster["RAY_ADDRESS"]  # the dashboard's address, to which no driver can connect
        return {**machine_environment(keep=() if has_own_store else ("AWS_",)), **cluster}

    def check_ports(self, description: LocalDescription) -> None:
        """Refuse a cluster whose ports are in use.

        Raises:
            OSError: Some are in use.
        """
        ports, server = description.ports, self.s3_server(description)
        used = {**ports.head(), "MLflow": ports.mlflow}
        if description.database == "postgres":
            used["PostgreSQL"] = ports.postgres
        for number in server.ports if server else []:
            used[f"S3 {number}"] = number
        check_free(used)

    def start_all(self) -> None:
        """Start the parts at the same time; the first that fails ends the others."""
        parts = (self._start_s3, self.ray().start_all, self.start_mlflow)
        with ThreadPoolExecutor(len(parts)) as pool:
            futures = [pool.submit(part) for part in parts]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._end_all()  # before the pool waits for the other parts
                raise

    def start_mlflow(self) -> None:
        """Start the MLflow server, and wait until it answers."""
        self.mlflow().start(self.node_environment())

    def clear(self) -> None:
        """End all processes, and delete everything but logs and the data of S3 and MLflow."""
        self._end_all()
        description = cluster_folder.read(self.folder)
        if description and description.ray_folder:
            shutil.rmtree(description.ray_folder, ignore_errors=True)
        for name in ("cluster.json", "environment", "token"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()

    def _start_s3(self) -> None:
        if server := self.s3_server(self.description()):
            server.start()
            server.make_bucket("bcl-ray")

    def _end_all(self) -> None:
        self.processes.end(*self.processes.names(), patience=5)
        description = cluster_folder.read(self.folder)
        if description and (server := self.s3_server(description)):
            server.stop()


def check_options(workers: int, store: str, database: str, cpus: int) -> None:
    """Refuse options with which no cluster starts.

    Raises:
        ValueError: An option is out of range.
    """
    if workers < 1:
        raise UserError(f"--workers ({workers}) must be at least 1")
    if cpus < 1:
        raise UserError(f"--cpus ({cpus}) must be at least 1")
    if store not in S3_SERVERS and not store.startswith("s3://"):
        raise UserError(f"--store ({store}) must be {', '.join(S3_SERVERS)} or s3://BUCKET/PREFIX")
    if database not in DATABASES:
        raise UserError(f"--database ({database}) must be {' or '.join(DATABASES)}")


@dataclass(frozen=True)
class Switch:
    """How a part of a running cluster is ended, and started again."""

    stop: Callable[[Parts], None]
    start: Callable[[Parts], None]


SWITCHES = {
    "s3": Switch(
        lambda parts: parts.own_s3_server().stop(), lambda parts: parts.own_s3_server().start()
    ),
    "mlflow": Switch(lambda parts: parts.mlflow().stop(), Parts.start_mlflow),
    "head": Switch(
        lambda parts: parts.processes.kill("head"), lambda parts: parts.ray().restart_head()
    ),
}
