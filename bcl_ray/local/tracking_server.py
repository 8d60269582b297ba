"""The MLflow server of one machine: its database in a folder, its artifacts in S3 behind it."""

from pathlib import Path

from bcl_ray.local.ports import LOOPBACK
from bcl_ray.local.processes import BIN


def command(port: int, artifacts: str) -> list[str]:
    """`mlflow server`, whose clients need no key of the object store.

    Args:
        artifacts: s3:// address under which it keeps artifacts.
    """
    return [
        str(BIN / "mlflow"),
        "server",
        *("--host", LOOPBACK, "--port", str(port), "--workers", "2"),
        *("--artifacts-destination", artifacts, "--serve-artifacts"),
        *("--allowed-hosts", f"{LOOPBACK}:{port},localhost:{port}"),
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
