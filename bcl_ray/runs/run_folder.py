"""A run's folder: what it is, whether it may go on, and its checkpoints.

<runs>/<name>/experiment.yaml    the resolved experiment
<runs>/<name>/run.json           identity and digest; a folder without it holds no run
<runs>/<name>/journal.jsonl      what the tracker was told (a local run's folder)
<runs>/<name>/driver.lease       who drives the run; keeps a second driver off, see `lease`
<runs>/<name>/driver.log         what libraries logged in the driver (a local run's folder)
<runs>/<name>/checkpoint_*/      the last two checkpoints, which Ray Train keeps account of
<runs>/<name>/best_*/            the one with the highest accuracy
<runs>/<name>/only_best.json     of a trial that lost: its history, for checkpoint_* are gone
"""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

RUN_FILE = "run.json"
EXPERIMENT_FILE = "experiment.yaml"
BEST = "best_"  # begins the folder of the checkpoint with the highest accuracy
LAST = "checkpoint_"  # begins those of Ray Train's last two
ONLY_BEST = "only_best.json"


@dataclass(frozen=True)
class Run:
    """A run's identity.

    Args:
        uri: its folder.
        uid: 32 hex digits, which MLflow has as a tag; stable over resumes.
        digest: of the experiment, so that a run is never continued with another one.
        fingerprint: of the data, likewise.
    """

    uri: str
    uid: str
    digest: str
    fingerprint: str

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return name_of(self.uri)


def name_of(uri: str) -> str:
    """The name of a run whose folder this is."""
    return paths.split(uri)[1]


def holds_run(uri: str) -> bool:
    """Whether a folder holds a run."""
    return files.exists(files.join(uri, RUN_FILE))


def run_uri(run: str, runs: str) -> str:
    """The folder of a run that is given by name, or by its folder's path or URI."""
    return run if "/" in run else files.join(runs, run)


def default_name(experiment: Experiment) -> str:
    """The experiment's name and the time, for a run that was given no name."""
    return f"{experiment.name}-{time.strftime('%m%d-%H%M%S')}"


def create(uri: str, experiment: Experiment, fingerprint: str) -> Run:
    """Begin a run in a folder of its own.

    Raises:
        ValueError: the folder already holds a run, with how to go on.
    """
    run = Run(uri, secrets.token_hex(16), experiment.digest(), fingerprint)
    check_free(uri, experiment)
    files.write_bytes(files.join(uri, EXPERIMENT_FILE), experiment.to_yaml().encode())
    files.write_bytes(files.join(uri, RUN_FILE), json.dumps(asdict(run)).encode())
    return run


def check_free(uri: str, experiment: Experiment) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ValueError: with how to go on.
    """
    if holds_run(uri):
        run = open_run(uri)[0]
        same = run.digest == experiment.digest()
        raise UserError(
            f"tracking.run '{run.name}' exists in {paths.for_display(paths.split(uri)[0])} with "
            f"{'this' if same else 'another'} configuration: "
            + (f"go on with --resume {reference(run)}, or " if same else "")
            + "give the new run another name (tracking.run=NAME)"
        )


def open_run(uri: str) -> tuple[Run, Experiment]:
    """A run that exists, and its experiment.

    Raises:
        ValueError: the folder holds no run, or its files were changed since.
    """
    try:
        content = json.loads(files.read_bytes(files.join(uri, RUN_FILE)))
        run = Run(**{**content, "uri": uri})
    except FileNotFoundError:
        raise UserError(
            f"{paths.for_display(uri)} holds no run (no {RUN_FILE}): name one that `bcl-ray train` "
            "began, or set tracking.runs to where it is"
        ) from None
    except (TypeError, ValueError):
        raise UserError(
            f"{files.join(uri, RUN_FILE)} is not as `bcl-ray train` wrote it: restore it, or "
            "begin another run"
        ) from None
    file = files.join(uri, EXPERIMENT_FILE)
    experiment = from_yaml(files.read_bytes(file).decode(), origin=file)
    if experiment.digest() != run.digest:
        raise UserError(
            f"{file} is not the experiment that run '{run.name}' began with (digest "
            f"{experiment.digest()}, was {run.digest}): restore it, or begin another run"
        )
    return run, experiment


def check_resumable(run: Run, experiment: Experiment, fingerprint: str) -> None:
    """Refuse to continue a run with another experiment or other data.

    Raises:
        ValueError: naming what differs; or a run of which the best checkpoint alone was kept.
    """
    if why := why_only_best(run):
        raise UserError(
            f"run '{run.name}' {why}, and its last checkpoint was removed: train it again from its "
            f"options, bcl-ray train {paths.for_display(files.join(run.uri, EXPERIMENT_FILE))} "
            "tracking.run=NAME"
        )
    if experiment.digest() != run.digest:
        differing = ", ".join(_differing(open_run(run.uri)[1], experiment))
        raise UserError(
            f"run '{run.name}' was begun with another configuration ({differing}): only data.path, "
            "data.residency, scale.* and tracking.* may change on --resume"
        )
    if fingerprint != run.fingerprint:
        raise UserError(
            f"data.path {experiment.data.path} holds other data (fingerprint "
            f"{fingerprint[:12]}) than run '{run.name}' was begun with ({run.fingerprint[:12]})"
        )


def _differing(before: Experiment, now: Experiment) -> Iterator[str]:
    """Options that another value was given than a run began with, and both values."""
    old, new = before.computed_options(), now.computed_options()
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} was {old.get(name)}, now {new.get(name)}"


def keep_only_best(run: Run, why: str, history: list[dict[str, float]]) -> None:
    """Remove a run's last checkpoints, from which it could go on; the best one stays.

    Args:
        run: that has ended; where it has no best checkpoint, nothing is removed.
        why: what became of it, for who asks for its last checkpoint later.
        history: a record per epoch, which only the last checkpoint has whole.

    Raises:
        OSError: the folder cannot be written.
    """
    folders = files.list_folders(run.uri)
    if not any(name.startswith(BEST) for name in folders):
        return
    note = files.join(run.uri, ONLY_BEST)
    if not files.exists(note):  # it is written first: a kill leaves too much, not too little
        files.write_bytes(note, json.dumps({"why": why, "history": history}).encode())
    for name in folders:
        if name.startswith(LAST):
            files.delete_folder(files.join(run.uri, name))


def why_only_best(run: Run) -> str | None:
    """Why a run has its best checkpoint alone; None where it has its last, or none yet."""
    content = _only_best(run)
    return str(content["why"]) if content else None


def saved_history(run: Run) -> list[dict[str, float]] | None:
    """A record per epoch of such a run; None of others, whose last checkpoint has it."""
    content = _only_best(run)
    return list(content["history"]) if content else None


def _only_best(run: Run) -> dict[str, Any] | None:
    try:
        return dict(json.loads(files.read_bytes(files.join(run.uri, ONLY_BEST))))
    except FileNotFoundError:
        return None


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths, which mean the same in every process and later on."""
    places = {
        section: getattr(experiment, section).model_copy(update={name: paths.absolute(path)})
        for section, name, path in (
            ("data", "path", experiment.data.path),
            ("tracking", "runs", experiment.tracking.runs),
            ("model", "weights", experiment.model.weights),
        )
        if path is not None
    }
    return experiment.model_copy(update=places)


def reference(run: Run) -> str:
    """How a command names a run: by name in the default place, elsewhere by its folder."""
    folder = paths.for_display(paths.absolute(run.uri))
    return run.name if folder == f"runs/{run.name}" else folder


def local_folder(run: Run) -> Path:
    """Where this machine keeps a run's journal: its folder, or the cache for a remote one."""
    if paths.is_local(run.uri):
        return Path(files.resolve(run.uri)[1])
    return files.user_cache() / "bcl_ray" / run.uid
