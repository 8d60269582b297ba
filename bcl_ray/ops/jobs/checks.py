"""Checks of a job that this machine can make before anything is sent."""

import os
from urllib.parse import urlsplit

from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.waiting import call_with_limit
from bcl_ray.runs import run_folder
from bcl_ray.runs.budget import budget
from bcl_ray.storage import paths
from bcl_ray.tracking.connection import tracking_uri

CHECK_SECONDS = 15.0  # for reading a run or data from this machine
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_locations(experiment: Experiment) -> None:
    """Refuse an experiment that names paths of this machine."""
    for option, path in (
        ("data.path", experiment.data.path),
        ("tracking.runs", experiment.tracking.runs),
        ("model.weights", experiment.model.weights_file),
    ):
        if path is not None:
            check_uri(option, path)


def check_uri(option: str, path: str) -> None:
    """Refuse a path of this machine.

    Raises:
        ValueError: It is one; names the option.
    """
    if "://" not in path:
        raise UserError(
            f"{option} ({path}) is a path of this machine, which a cluster does not see: use a "
            "URI, or file:// for a folder that every node mounts"
        )


def check_run(uri: str) -> tuple[str, ...]:
    """Check that a folder holds a run.

    Returns:
        A note why the folder was not checked; empty if it was.

    Raises:
        ValueError: It is a path of this machine, or holds no run.
    """
    check_uri("--resume", uri)
    try:
        call_with_limit(CHECK_SECONDS, lambda: run_folder.open_run(uri))
    except (OSError, ImportError) as error:
        return (f"run not checked from here ({error}); the job will check it",)
    except ValueError:
        if not paths.is_local(uri):  # only the nodes may mount the folder of a file:// URI
            raise
        return ("run not checked from here; the job will check it",)
    return ()


def check_tracking(experiment: Experiment, address: str) -> None:
    """Refuse a tracking server that the nodes of the cluster at an address cannot reach."""
    uri = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return
    option = "tracking.uri" if experiment.tracking.uri else "MLFLOW_TRACKING_URI"
    tracking_uri(experiment)  # refuses a malformed URI, or one with a password
    if uri.startswith("sqlite:") and not uri.startswith("sqlite:////"):
        raise UserError(f"{option} ({uri}) is a file of this machine: name an MLflow server")
    if _is_loopback(uri) and not _is_loopback(address):
        raise UserError(
            f"{option} ({uri}) is a server of this machine, and the cluster is not: name it as the "
            "cluster's nodes see it, with tracking.uri=http://HOST:PORT"
        )


def tracking_words(experiment: Experiment) -> list[str]:
    """The tracking server of this environment as an option, if the experiment names none.

    Without either, the cluster's environment names one, or runs under file:// use SQLite.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return [f"tracking.uri={uri}"] if uri and not experiment.tracking.uri else []


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def check_data(experiment: Experiment) -> tuple[str | None, tuple[str, ...]]:
    """Check the experiment against its data.

    Returns:
        The data's fingerprint; or None, and a note why the data were not checked.

    Raises:
        ValueError: There are no data, or the run cannot work with them.
    """
    path = experiment.data.path
    try:
        manifest = call_with_limit(CHECK_SECONDS, lambda: _manifest(path))
        whole = resolved(experiment)
    except (OSError, ImportError) as error:
        return None, (f"data not checked from here ({error}); the job will check them",)
    if manifest is None:
        return None, ("data not checked from here; the job will check them",)
    budget(whole, manifest, None)
    return manifest.fingerprint, ()


def _manifest(path: str) -> Manifest | None:
    try:
        return read_manifest(path)
    except ValueError:
        if paths.is_local(path):  # only the nodes may mount the folder of a file:// URI
            return None
        raise
