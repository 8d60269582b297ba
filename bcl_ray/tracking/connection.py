"""The connection to MLflow: its URI, the settings of its client, and its errors."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files
from bcl_ray.storage.paths import is_local

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
SETTINGS = {  # of MLflow's client, unless the environment has them
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the delivery repeats requests itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def tracking_uri(experiment: Experiment) -> str:
    """MLflow's URI for a run; errors as of `mlflow_uri`."""
    return mlflow_uri(experiment.tracking.uri, experiment.tracking.runs)


def mlflow_uri(uri: str | None, runs: str) -> str:
    """MLflow's URI: the option, else MLFLOW_TRACKING_URI, else an SQLite file beside local runs.

    Args:
        uri: Value of the option tracking.uri.
        runs: Folder or URI that holds runs.

    Raises:
        ValueError: The URI is neither of an SQLite file nor of a server, or it contains a
            password; or there is none although runs are remote, so that each machine would have
            its own.
    """
    for option, address in (
        ("tracking.uri", uri),
        ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")),
    ):
        if address:
            return _check_uri(option, address)
    if not is_local(runs):
        raise UserError(
            f"tracking.runs is {runs}, so tracking.uri (or MLFLOW_TRACKING_URI) must name an "
            "MLflow server"
        )
    return sqlite_uri(Path(files.resolve(runs)[1], "mlflow.db"))


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite database, in which SQLAlchemy reads '%' and '?' as in any URL.

    MLflow reads it as a path too, so beside a folder 'why?' it leaves an empty one, 'why%3F'.
    """
    return SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None if the URI is another one."""
    name, _, _ = uri.removeprefix(SQLITE).partition("?")
    return Path(unquote(name)) if uri.startswith(SQLITE) else None


def _check_uri(option: str, uri: str) -> str:
    address = urlsplit(uri)
    if "@" in address.netloc:  # the message must not show it
        raise UserError(
            f"{option} contains a user name or a password, and it is shown and stored with the "
            "run: remove it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if address.scheme in ("", "file"):
        raise UserError(
            f"{option} '{uri}' is a file store, which MLflow does not support any more: use "
            "sqlite:///FILE or the http(s):// address of a server"
        )
    if address.scheme not in ("sqlite", "http", "https"):
        raise UserError(
            f"{option} '{uri}' must be sqlite:///FILE or the http(s):// address of a server; for "
            "another database, start a server that uses it"
        )
    if address.scheme == "sqlite" and sqlite_file(uri) in (None, Path(), Path(":memory:")):
        raise UserError(f"{option} '{uri}' names no file: write sqlite:///FILE")
    _, question, options = uri.partition("?")
    if address.scheme == "sqlite" and question and ("/" in options or not parse_qsl(options)):
        raise UserError(f"{option} '{uri}': write the '?' of a name as %3F, and its '%' as %25")
    return uri


def set_client_settings() -> None:
    """Give MLflow's client the SETTINGS that the environment lacks; before MLflow is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn errors of MLflow into OSError.

    Raises:
        OSError: MLflow does not answer, or refuses.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__ != "mlflow.exceptions":  # importing it takes seconds
            raise
        text = str(error).strip().splitlines()[0]
        raise OSError(f"MLflow: {text}: see MLFLOW_TRACKING_URI, and MLflow's log") from error


def mlflow_client(uri: str) -> "MlflowClient":
    """A client of MLflow that does not repeat requests.

    Raises:
        ValueError: The URI is of an SQLite file that does not exist; MLflow would create it.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(f"there is no {file}: train first, or say where runs are with --runs")
    set_client_settings()
    from mlflow import MlflowClient  # noqa: PLC0415  takes seconds, and not every model needs it

    return MlflowClient(uri)
