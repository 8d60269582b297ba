"""A job to be sent, checked on this machine as far as possible before anything is sent."""

import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import CLIENT, client_versions, versions
from bcl_ray.machine.waiting import call_with_limit
from bcl_ray.ops.jobs.client import JobClient
from bcl_ray.ops.jobs.package import Package
from bcl_ray.runs import events, run_folder
from bcl_ray.runs.budget import budget
from bcl_ray.storage import files, paths
from bcl_ray.tracking.connection import tracking_uri

STOP_SECONDS = 90  # for a last checkpoint; after that, Ray kills the job
CHECK_SECONDS = 15.0  # for reading a run or data from this machine
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class JobRequest:
    """A job to be sent."""

    name: str
    """Name of the job, unique on its cluster."""
    kind: str
    """The command, such as train; its entry point is jobs/KIND.py."""
    words: tuple[str, ...]
    """Arguments of the command."""
    metadata: dict[str, str]
    """The job's record, which every client of the cluster can read."""
    notes: tuple[str, ...] = ()
    """Messages for the person who sends it."""


def new_request(
    kind: str,
    label: str,
    words: tuple[str, ...],
    *,
    notes: Iterable[str] = (),
    name: str | None = None,
    **metadata: str,
) -> JobRequest:
    """A request for a job.

    Args:
        name: Name of the job; by default a label and the time.
        notes: Messages for the person who sends it; each is shown once.
        **metadata: The job's record, in addition to its kind and versions.
    """
    name = _safe_name(name or f"{label}-{time.strftime('%m%d-%H%M%S')}")
    record = {"kind": kind, **metadata, **versions()}
    return JobRequest(name, kind, words, record, tuple(dict.fromkeys(notes)))


def resume_request(uri: str, words: tuple[str, ...]) -> JobRequest:
    """A request to continue the run in a folder.

    Raises:
        ValueError: This machine can read the folder, and it holds no run.
    """
    check_uri("--resume", uri)
    notes = []
    try:
        call_with_limit(CHECK_SECONDS, lambda: run_folder.open_run(uri))
    except (OSError, ImportError) as error:
        notes = [f"run not checked from here, the job will: {error}"]
    except ValueError:
        if not paths.is_local(uri):  # only the nodes may mount the folder of a file:// URI
            raise
    return new_request("train", uri.rstrip("/").rpartition("/")[2], words, notes=notes, run=uri)


def train_request(
    recipe: str, experiment: Experiment, words: tuple[str, ...], address: str
) -> JobRequest:
    """A request to train.

    The run gets its name here, so that it can be found and continued whatever happens to the job.

    Raises:
        ValueError: The run cannot work on a cluster, or with its data (if they can be read here).
    """
    _check_locations(experiment)
    _check_tracking(experiment, address)
    default = run_folder.default_name(experiment)
    run = experiment.tracking.run or default
    added = [] if experiment.tracking.run else [f"tracking.run={run}"]
    fingerprint, notes = _check_data(experiment)
    return new_request(
        "train",
        run.rpartition("/")[2],
        (*words, *added, *_tracking_words(experiment)),
        name=default if run == default else None,
        notes=notes,
        recipe=recipe,
        run=run_folder.run_uri(run, experiment.tracking.runs),
        data=experiment.data.path,
        **({"data.fingerprint": fingerprint} if fingerprint else {}),
    )


def trials_request(
    kind: str,
    name: str,
    recipe: str | None,
    experiments: Sequence[Experiment],
    *,
    words: tuple[str, ...],
    address: str,
) -> JobRequest:
    """A request to start or continue a search or a study.

    Args:
        kind: search or study.
        name: Its name.
        recipe: Name or file of the recipe, or file of the study; None to continue with a search's
            own experiment.
        experiments: The experiment that the search varies, or those of the study's cells.

    Raises:
        ValueError: It cannot work on a cluster, or with its data (if they can be read here).
    """
    for experiment in experiments:
        _check_locations(experiment)
    _check_tracking(experiments[0], address)
    by_path = {experiment.data.path: experiment for experiment in experiments}
    checked = [_check_data(experiment) for experiment in by_path.values()]
    fingerprints = [fingerprint for fingerprint, _ in checked if fingerprint]
    return new_request(
        kind,
        name,
        (*words, *_tracking_words(experiments[0])),
        notes=chain.from_iterable(notes for _, notes in checked),
        run=files.join(experiments[0].tracking.runs, name),
        data=" ".join(by_path),
        command=shlex.join(words),
        **({"recipe": recipe} if recipe else {}),
        **({"data.fingerprint": " ".join(fingerprints)} if fingerprints else {}),
    )


def _check_locations(experiment: Experiment) -> None:
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


def submit(cluster: JobClient, request: JobRequest, package: Package) -> None:
    """Send a job; returns when the cluster has it."""
    variables = {
        events.SWITCH: "json",
        CLIENT: json.dumps(client_versions()),
        # Ray reads these two when the job is to stop.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    }
    with tempfile.TemporaryDirectory(prefix="bcl_ray-") as folder:
        package.write(Path(folder))
        cluster.send(
            submission_id=request.name,
            entrypoint=shlex.join(["python", f"jobs/{request.kind}.py", *package.words]),
            runtime_env={"working_dir": folder, "env_vars": variables},
            metadata=request.metadata,
        )


def _check_tracking(experiment: Experiment, address: str) -> None:
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


def _tracking_words(experiment: Experiment) -> list[str]:
    """The tracking server of this environment as an option, if the experiment names none.

    Without either, the cluster's environment names one, or runs under file:// use SQLite.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return [f"tracking.uri={uri}"] if uri and not experiment.tracking.uri else []


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def _check_data(experiment: Experiment) -> tuple[str | None, tuple[str, ...]]:
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
        return None, (f"data not checked from here, the job will: {error}",)
    if manifest is None:
        return None, ("data not checked from here, the job will",)
    budget(whole, manifest, None)
    return manifest.fingerprint, ()


def _manifest(path: str) -> Manifest | None:
    try:
        return read_manifest(path)
    except ValueError:
        if paths.is_local(path):  # only the nodes may mount the folder of a file:// URI
            return None
        raise


def _safe_name(name: str) -> str:
    """A name without characters that are special in paths, for Ray makes a path of it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
