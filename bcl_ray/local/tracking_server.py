"""The MLflow server of one machine: its database in a folder, its artifacts in S3 behind it."""

from pathlib import Path

from bcl_ray.local.ports import LOOPBACK
from bcl_ray.local.processes import BIN
from bcl_ray.local.secret import kept

USER = "admin"


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
    return {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of language models; four processes less
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def sqlite(folder: Path) -> str:
    """The address of a database in one file."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{folder}/mlflow.db"


class Accounts:
    """Who may use a server that asks: one account, which may make others.

    Args:
        folder: of the password, which is made at first use, in a file of mode 0600.
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
        settings.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\n"
            f"admin_username = {USER}\n"
        )
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._password(),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": kept(self.folder / "session_key"),
        }

    def client(self) -> dict[str, str]:
        """What everybody needs who is to be let in."""
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self._password()}

    def _password(self) -> str:
        return kept(self.folder / "password")
