"""The MLflow server of a local cluster: its database in a folder, its artifacts in S3."""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bcl_ray.machine.messages import last_line
from bcl_ray.machine.waiting import answers
from bcl_ray.ops.local.cluster_folder import LocalDescription
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.postgres import Postgres
from bcl_ray.ops.local.processes import BIN, START_SECONDS, Processes
from bcl_ray.ops.local.secret import ensure_secret
from bcl_ray.tracking import mlflow_server
from bcl_ray.tracking.connection import sqlite_uri

USER = "bcl-ray"
DATABASES = ("sqlite", "postgres")


class TrackingServer:
    """The MLflow server of one cluster, and PostgreSQL if the description asks for it.

    Args:
        processes: Processes of the cluster; the servers run as `mlflow` and `postgres`.
    """

    def __init__(self, folder: Path, description: LocalDescription, processes: Processes) -> None:
        self._description = description
        self._processes = processes
        # A database records the URIs of its artifacts, so each store has a database of its own.
        self._folder = folder / f"mlflow-{description.store.partition(':')[0]}"
        self._accounts = Accounts(self._folder)
        self.uri = f"http://{LOOPBACK}:{description.ports.mlflow}"

    def client_environment(self) -> dict[str, str]:
        """Environment variables of clients."""
        account = self._accounts.client() if self._description.auth else {}
        return {"MLFLOW_TRACKING_URI": self.uri, **account}

    def start(self, node_environment: Mapping[str, str]) -> None:
        """Start the server and its database, and wait until it answers.

        Args:
            node_environment: Environment variables of every process of the cluster.

        Raises:
            OSError: Something is not installed, or has ended; with its last line of output.
        """
        port, auth = self._description.ports.mlflow, self._description.auth
        artifacts = f"{self._description.store_uri}/mlflow"
        if self._description.database == "postgres":
            database, added = self._start_postgres()
        else:
            database, added = sqlite(self._folder), {}
        added |= environment(database)
        if auth:
            added |= self._accounts.server(database)
        all_variables = {**node_environment, **added}
        self._processes.start("mlflow", command(port, artifacts, auth=auth), all_variables)
        self._processes.wait("mlflow", partial(answers, LOOPBACK, port), START_SECONDS)
        if auth:
            self._accounts.ensure_client(self.uri)

    def stop(self) -> None:
        """End the server; its data stay, and a database server goes on."""
        self._processes.end("mlflow")

    def _start_postgres(self) -> tuple[str, dict[str, str]]:
        """Start PostgreSQL if it does not run.

        Returns:
            URL of the database, and environment variables of its clients.
        """
        port = self._description.ports.postgres
        server = Postgres(self._folder / "postgres", port, self._processes)
        if not self._processes.alive("postgres"):
            server.start()
        return server.address, server.environment()


def command(port: int, artifacts: str, *, auth: bool = False) -> list[str]:
    """`mlflow server`, through which clients reach artifacts without a key of the store.

    Args:
        artifacts: s3:// URI under which the server stores artifacts.
        auth: Ask clients for a name and a password of `Accounts`.
    """
    return [
        str(BIN / "mlflow"),
        "server",
        *("--host", LOOPBACK, "--port", str(port), "--workers", "2"),
        *("--artifacts-destination", artifacts, "--serve-artifacts"),
        *("--allowed-hosts", f"{LOOPBACK}:{port},localhost:{port}"),
        *(("--app-name", "basic-auth") if auth else ()),
    ]


def environment(database: str) -> dict[str, str]:
    """Environment variables of the server.

    The database's URL is among them, not on the command line, for it may hold a password.
    """
    return {"MLFLOW_BACKEND_STORE_URI": database, **mlflow_server.SETTINGS}


def sqlite(folder: Path) -> str:
    """The URL of a database in one file of a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return sqlite_uri(folder / "mlflow.db")


class Accounts:
    """The accounts of a server that asks for passwords: an administrator, and one for all clients.

    Args:
        folder: Folder of the passwords, which are made at first use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def server(self, database: str) -> dict[str, str]:
        """Environment variables of the server.

        Args:
            database: URL of the accounts' database, without a password; it may be that of runs.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = self.folder / "basic_auth.ini"
        settings.write_text(mlflow_server.basic_auth(database))
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ensure_secret(self.folder / "password"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": ensure_secret(self.folder / "session_key"),
        }

    def client(self) -> dict[str, str]:
        """Environment variables of clients: the name and the password of their account."""
        return _credentials(USER, ensure_secret(self.folder / "client_password"))

    def ensure_client(self, uri: str) -> None:
        """Create the clients' account on the server, if it does not exist.

        Raises:
            OSError: The server refuses; with its answer.
        """
        account = {
            "MLFLOW_TRACKING_URI": uri,
            **_credentials(mlflow_server.ADMIN, ensure_secret(self.folder / "password")),
            mlflow_server.NAME: USER,
            mlflow_server.PASSWORD: ensure_secret(self.folder / "client_password"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "bcl_ray.tracking.mlflow_server"],
            env={**os.environ, **account},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(last_line(done.stderr, "MLflow created no account for clients"))


def _credentials(name: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
