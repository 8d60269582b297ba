"""A job to be sent, with its record; what can be checked from here is checked first."""

import json
import re
import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.versions import CLIENT, client_versions, versions
from bcl_ray.ops.jobs.checks import (
    check_data,
    check_locations,
    check_run,
    check_tracking,
    tracking_words,
)
from bcl_ray.ops.jobs.client import JobClient
from bcl_ray.ops.jobs.package import Package
from bcl_ray.runs import events, run_folder
from bcl_ray.storage import files

STOP_SECONDS = 90  # for a last checkpoint; after that, Ray kills the job


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
    name: str,
    words: tuple[str, ...],
    metadata: Mapping[str, str | None],
    *,
    add_time: bool = True,
    notes: Iterable[str] = (),
) -> JobRequest:
    """A request for a job.

    Args:
        name: Name of the job.
        metadata: The job's record, to which its kind and versions are added; None is left out.
        add_time: Add the time to the name, so that no other job has it.
        notes: Messages for the person who sends it; each is shown once.
    """
    if add_time:
        name = f"{name}-{time.strftime('%m%d-%H%M%S')}"
    known = {key: value for key, value in metadata.items() if value}
    record = {"kind": kind, **known, **versions()}
    return JobRequest(_safe_name(name), kind, words, record, tuple(dict.fromkeys(notes)))


def resume_request(uri: str, words: tuple[str, ...]) -> JobRequest:
    """A request to continue the run in a folder.

    Raises:
        ValueError: This machine can read the folder, and it holds no run.
    """
    notes = check_run(uri)
    return new_request(
        "train", uri.rstrip("/").rpartition("/")[2], words, {"run": uri}, notes=notes
    )


def train_request(
    recipe: str, experiment: Experiment, words: tuple[str, ...], address: str
) -> JobRequest:
    """A request to train.

    The run gets its name here, so that it can be found and continued whatever happens to the job.

    Raises:
        ValueError: The run cannot work on a cluster, or with its data (if they can be read here).
    """
    check_locations(experiment)
    check_tracking(experiment, address)
    default = run_folder.default_name(experiment)
    run = experiment.tracking.run or default
    added = [] if experiment.tracking.run else [f"tracking.run={run}"]
    fingerprint, notes = check_data(experiment)
    return new_request(
        "train",
        run.rpartition("/")[2],
        (*words, *added, *tracking_words(experiment)),
        {
            "recipe": recipe,
            "run": run_folder.run_uri(run, experiment.tracking.runs),
            "data": experiment.data.path,
            "data.fingerprint": fingerprint,
        },
        add_time=run != default,
        notes=notes,
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
        check_locations(experiment)
    check_tracking(experiments[0], address)
    by_path = {experiment.data.path: experiment for experiment in experiments}
    checked = [check_data(experiment) for experiment in by_path.values()]
    fingerprints = [fingerprint for fingerprint, _ in checked if fingerprint]
    return new_request(
        kind,
        name,
        (*words, *tracking_words(experiments[0])),
        {
            "run": files.join(experiments[0].tracking.runs, name),
            "data": " ".join(by_path),
            "command": shlex.join(words),
            "recipe": recipe,
            "data.fingerprint": " ".join(fingerprints),
        },
        notes=chain.from_iterable(notes for _, notes in checked),
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


def _safe_name(name: str) -> str:
    """A name without characters that are special in paths, for Ray makes a path of it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
