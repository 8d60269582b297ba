"""What a job asks of a cluster, checked here as far as it can be, before anything is sent."""

import json
import os
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import CLIENT, client_versions, versions
from bcl_ray.ops.jobs.package import Package
from bcl_ray.runs import events, run_folder
from bcl_ray.runs.budget import budget
from bcl_ray.storage import files, paths
from bcl_ray.tracking.tracker import tracking_uri

STOP_SECONDS = 90  # for a last checkpoint; then Ray kills
LOOK_SECONDS = 15.0  # for a look at the data from here
LOOPBACK = ("localhost", "127.0.0.1", "::1")

T = TypeVar("T")


@dataclass(frozen=True)
class JobRequest:
    """One job to be.

    Args:
        name: by which people find it again, unique on its cluster.
        kind: of its entry point.
        words: its arguments.
        metadata: what its record says of it; every client of the cluster can read it.
        notes: what a person should know before it is sent.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def named(kind: str, label: str, words: tuple[str, ...], **metadata: str) -> JobRequest:
    """A request named by a label and the time."""
    name = _plain(f"{label}-{time.strftime('%m%d-%H%M%S')}")
    return JobRequest(name, kind, words, {"kind": kind, **metadata, **versions()})


def resuming(uri: str, words: tuple[str, ...]) -> JobRequest:
    """A request to continue the run in a folder.

    Raises:
        ValueError: there is no run, where its folder can be read from here.
    """
    check_uri("--resume", uri)
    notes = []
    try:
        within(LOOK_SECONDS, lambda: run_folder.open_run(uri))
    except (OSError, ImportError) as error:
        notes = [f"run not checked from here, the job will: {error}"]
    except ValueError:
        if not paths.is_local(uri):  # the nodes may mount a folder that this machine does not
            raise
    made = named("train", uri.rstrip("/").rpartition("/")[2], words, run=uri)
    return replace(made, notes=tuple(notes))


def training(
    recipe: str, experiment: Experiment, words: tuple[str, ...], address: str
) -> JobRequest:
    """A request to train.

    The run gets a name here, so that it can be found and continued whatever becomes of the job.

    Raises:
        ValueError: the run cannot work on a cluster, or with its data where that can be read.
    """
    _check_places(experiment)
    default = run_folder.default_name(experiment)
    run = experiment.tracking.run or default
    added = [] if experiment.tracking.run else [f"tracking.run={run}"]
    added += _tracking_words(experiment, address)
    fingerprint, notes = _look(experiment)
    metadata = {
        "kind": "train",
        "recipe": recipe,
        "run": run_folder.run_uri(run, experiment.tracking.runs),
        "data": experiment.data.path,
        **({"data.fingerprint": fingerprint} if fingerprint else {}),
        **versions(),
    }
    own = run if run == default else f"{run.rpartition('/')[2]}-{time.strftime('%m%d-%H%M%S')}"
    return JobRequest(_plain(own), "train", (*words, *added), metadata, notes)


def searching(
    name: str, recipe: str | None, experiment: Experiment, words: tuple[str, ...], address: str
) -> JobRequest:
    """A request to search, or to go on with a search.

    Args:
        name: of the search.
        recipe: what is searched around; None: the search's own.
        experiment: likewise, resolved.
        words: arguments of the command.
        address: of the cluster.

    Raises:
        ValueError: it cannot work on a cluster, or with its data where they can be read.
    """
    _check_places(experiment)
    added = _tracking_words(experiment, address)
    fingerprint, notes = _look(experiment)
    made = named(
        "search",
        name,
        (*words, *added),
        run=files.join(experiment.tracking.runs, name),
        data=experiment.data.path,
        **({"recipe": recipe} if recipe else {}),
        **({"data.fingerprint": fingerprint} if fingerprint else {}),
    )
    return replace(made, notes=notes)


def _check_places(experiment: Experiment) -> None:
    """Refuse paths of this machine in an experiment."""
    for option, path in (
        ("data.path", experiment.data.path),
        ("tracking.runs", experiment.tracking.runs),
        ("model.weights", experiment.model.weights),
    ):
        if path is not None:
            check_uri(option, path)


def check_uri(option: str, path: str) -> None:
    """Refuse a path of this machine.

    Raises:
        ValueError: naming the option.
    """
    if "://" not in path:
        raise UserError(
            f"{option} ({path}) is a path of this machine, which a cluster does not see: use a "
            "URI, or file:// for a folder that every node mounts"
        )


def submit(cluster: Any, request: JobRequest, package: Package) -> None:
    """Send a job; returns when the cluster has it.

    Args:
        cluster: a `client.Cluster`.
        request: the job.
        package: its working directory.
    """
    settings = {
        events.SWITCH: "json",
        CLIENT: json.dumps(client_versions()),
        # Ray reads these two in the job's environment when the job is to stop.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    }
    with tempfile.TemporaryDirectory(prefix="bcl_ray-") as folder:
        package.write(Path(folder))
        cluster.send(
            submission_id=request.name,
            entrypoint=shlex.join(["python", f"jobs/{request.kind}.py", *package.words]),
            runtime_env={"working_dir": folder, "env_vars": settings},
            metadata=request.metadata,
        )


def _tracking_words(experiment: Experiment, address: str) -> list[str]:
    """The tracking server of this environment as an option, where the experiment names none."""
    uri = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return []  # the cluster's environment names one, or runs under file:// have SQLite
    option = "tracking.uri" if experiment.tracking.uri else "MLFLOW_TRACKING_URI"
    tracking_uri(experiment)  # it may be malformed, or hold a secret
    if uri.startswith("sqlite:") and not uri.startswith("sqlite:////"):
        raise UserError(f"{option} ({uri}) is a file of this machine: name an MLflow server")
    if _is_here(uri) and not _is_here(address):
        raise UserError(
            f"{option} ({uri}) is a server of this machine, and the cluster is not: name it as the "
            "cluster's nodes see it, with tracking.uri=http://HOST:PORT"
        )
    return [] if experiment.tracking.uri else [f"tracking.uri={uri}"]


def _is_here(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def _look(experiment: Experiment) -> tuple[str | None, tuple[str, ...]]:
    """The data's fingerprint, where it can be read from here, and else why not.

    Raises:
        ValueError: there are no data, or the run cannot work with them.
    """
    path = experiment.data.path
    try:
        manifest = within(LOOK_SECONDS, lambda: _manifest(path))
    except (OSError, ImportError) as error:
        return None, (f"data not checked from here, the job will: {error}",)
    if manifest is None:
        return None, ("data not checked from here, the job will",)
    budget(experiment, manifest, None)
    return manifest.fingerprint, ()


def _manifest(path: str) -> Manifest | None:
    try:
        return read_manifest(path)
    except ValueError:
        if paths.is_local(path):  # the nodes may mount a folder that this machine does not
            return None
        raise


def within(seconds: float, function: Callable[[], T]) -> T | None:
    """The function's value or error, or None after `seconds`, when it is left to itself."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["value"] = function()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    return outcome.get("value")


def _plain(name: str) -> str:
    """A name that is safe in a path, which Ray makes of it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
