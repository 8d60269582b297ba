"""The MLflow server of one machine: its database in a folder, its artifacts in S3 behind it."""

import os
import subprocess
import sys
from pathlib import Path

from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import BIN
from bcl_ray.ops.local.secret import kept
from bcl_ray.tracking import mlflow_server

USER = "bcl-ray"


def command(port: int, artifacts: str, *, auth: bool = False) -> list[str]:
    """`mlflow server`, whose clients need no key of the object store.

    Args:
        artifacts: s3:// address under which it keeps artifacts.
        auth: ask for a name and a password, as `Accounts` has them.
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
    """The database's address may hold a password, so it is not on the command line."""
    return {"MLFLOW_BACKEND_STORE_URI": database, **mlflow_server.SETTINGS}


def sqlite(folder: Path) -> str:
    """The address of a database in one file."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{folder}/mlflow.db"


class Accounts:
    """Who may use a server that asks: an administrator, and the account of all its clients.

    Args:
        folder: of their passwords, which are made at first use, in files of mode 0600.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def server(self, database: str) -> dict[str, str]:
        """What the server needs in its environment.

        Args:
            database: of accounts, which may be that of runs; without a password.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = self.folder / "basic_auth.ini"
        settings.write_text(mlflow_server.basic_auth(database))
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": kept(self.folder / "password"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": kept(self.folder / "session_key"),
        }

    def client(self) -> dict[str, str]:
        """What everybody needs who is to be let in."""
        return _credentials(USER, kept(self.folder / "client_password"))

    def ensure_client(self, uri: str) -> None:
        """Make the clients' account on the server, if it is not there.

        Raises:
            OSError: the server refuses; with its words.
        """
        account = {
            "MLFLOW_TRACKING_URI": uri,
            **_credentials(mlflow_server.ADMIN, kept(self.folder / "password")),
            mlflow_server.NAME: USER,
            mlflow_server.PASSWORD: kept(self.folder / "client_password"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "bcl_ray.tracking.mlflow_server"],
            env={**os.environ, **account},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["no account was made"])[-1])


def _credentials(name: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
