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
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import identity
from bcl_ray.runs.identity import Identity
from bcl_ray.storage import files, paths

RUN_FILE, EXPERIMENT_FILE = identity.RUN.file, identity.EXPERIMENT_FILE
BEST = "best_"  # begins the folder of the checkpoint with the highest accuracy
LAST = "checkpoint_"  # begins those of Ray Train's last two
ONLY_BEST = "only_best.json"


@dataclass(frozen=True)
class Run(Identity):
    """Identity of a run."""

    kind = identity.RUN


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
    check_free(uri, experiment)
    run = Run(uri, identity.new_uid(), experiment.digest(), fingerprint)
    identity.write_experiment(uri, experiment)
    identity.write(uri, identity.RUN, asdict(run))
    return run


def check_free(uri: str, experiment: Experiment) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ValueError: with how to go on.
    """
    if holds_run(uri):
        run = open_run(uri)[0]
        raise run.name_taken(experiment.digest(), reference(run))


def open_run(uri: str) -> tuple[Run, Experiment]:
    """A run that exists, and its experiment.

    Raises:
        ValueError: the folder holds no run, or its files were changed since.
    """
    content, experiment = identity.read(uri, identity.RUN)
    run = Run(uri, content["uid"], content["digest"], content["fingerprint"])
    run.check_unedited(experiment.digest())
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
        difference = ", ".join(_differing(open_run(run.uri)[1], experiment))
        run.check_configuration(experiment.digest(), difference)
    run.check_data(experiment.data.path, fingerprint)


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


def local_folder(run: Identity) -> Path:
    """Where this machine keeps a run's journal: its folder, or the cache for a remote one."""
    if paths.is_local(run.uri):
        return Path(files.resolve(run.uri)[1])
    return paths.user_cache() / "bcl_ray" / run.uid
