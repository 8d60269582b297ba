"""The folder of a run: its identity, whether it may be resumed, and its checkpoints.

<runs>/<name>/experiment.yaml    the resolved experiment
<runs>/<name>/run.json           identity and digest; a folder without this file holds no run
<runs>/<name>/journal.jsonl      what was tracked (on the driver's disk)
<runs>/<name>/driver.lease       the run's driver, see `storage.lease`
<runs>/<name>/driver.log         log of libraries in the driver (on the driver's disk)
<runs>/<name>/checkpoint_*/      the last two checkpoints, which Ray Train manages
<runs>/<name>/best_*/            the checkpoint with the highest accuracy
<runs>/<name>/only_best.json     if only the best checkpoint was kept: the reason and the history
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bcl_ray.experiment.options import VALUES_BEFORE_ADDED, Experiment, TrackingConfig
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import identity
from bcl_ray.runs.identity import Identity
from bcl_ray.storage import files, paths

RUN_FILE, EXPERIMENT_FILE = identity.RUN.file, identity.EXPERIMENT_FILE
BEST, LAST = "best_", "checkpoint_"  # prefixes of the checkpoints' folders
ONLY_BEST_FILE = "only_best.json"


@dataclass(frozen=True)
class Run(Identity):
    """Identity of a run."""

    kind = identity.RUN


def holds_run(uri: str) -> bool:
    """Whether a folder holds a run."""
    return files.exists(files.join(uri, RUN_FILE))


def run_uri(run: str, runs: str) -> str:
    """The folder of a run.

    Args:
        run: Name of the run, or path or URI of its folder.
        runs: Folder of the runs that are given by name.
    """
    return run if "/" in run else files.join(runs, run)


def resumed_uri(name: str, overrides: Iterable[str]) -> str:
    """The folder of a run or search to resume.

    Args:
        name: Its name, or path or URI of its folder.
        overrides: Changes to its experiment. The last one of tracking.runs, if any, says in which
            folder a name is looked up.
    """
    roots = [text.partition("=")[2] for text in overrides if text.startswith("tracking.runs=")]
    return run_uri(name, roots[-1] if roots else TrackingConfig().runs)


def default_name(experiment: Experiment) -> str:
    """The name of a run that was given none: the experiment's name and the time."""
    return f"{experiment.name}-{time.strftime('%m%d-%H%M%S')}"


def create(uri: str, experiment: Experiment, fingerprint: str) -> Run:
    """Create the folder of a new run.

    Raises:
        ValueError: The folder already holds a run; the text says how to go on.
    """
    check_free(uri, experiment)
    run = Run(uri, identity.new_uid(), experiment.digest(), fingerprint)
    identity.write_experiment(uri, experiment)
    identity.write(run, {"uri": uri})
    return run


def check_free(uri: str, experiment: Experiment) -> None:
    """Refuse a folder that already holds a run.

    Raises:
        ValueError: It holds one; the text says how to go on.
    """
    if holds_run(uri):
        run = open_run(uri)[0]
        raise run.name_taken(experiment.digest(), reference(run))


def open_run(uri: str) -> tuple[Run, Experiment]:
    """Read the identity and the experiment of a run.

    Raises:
        ValueError: The folder holds no run, or its files were edited.
    """
    content, experiment = identity.read(uri, identity.RUN)
    run = Run(uri, content["uid"], content["digest"], content["fingerprint"])
    run.check_unedited(experiment.digest())
    return run, experiment


def check_resumable(run: Run, experiment: Experiment, fingerprint: str) -> None:
    """Refuse to resume a run with another experiment or other data, or without its last checkpoint.

    Raises:
        ValueError: The text names the reason.
    """
    if reason := why_only_best(run):
        raise UserError(
            f"run '{run.name}' {reason}, and its last checkpoint was removed: train it again from "
            "its options, bcl-ray train "
            f"{paths.for_display(files.join(run.uri, EXPERIMENT_FILE))} tracking.run=NAME"
        )
    if experiment.digest() != run.digest:
        difference = ", ".join(differences(open_run(run.uri)[1], experiment))
        raise run.configuration_changed(difference)
    run.check_data(experiment.data.path, fingerprint)


def with_original_defaults(uri: str, experiment: Experiment) -> tuple[Experiment, list[str]]:
    """Give options that are newer than a run the values that keep the run's behaviour.

    A job that is started again after an upgrade has new defaults, or a recipe's new values, for
    options that did not exist when its run began.

    Returns:
        The experiment, and the options that were changed, as section.option=value.
    """
    stored = yaml.safe_load(files.read_bytes(files.join(uri, EXPERIMENT_FILE)))
    changes = [
        f"{section}.{option}={json.dumps(value)}"
        for (section, option), value in VALUES_BEFORE_ADDED.items()
        if option not in stored[section] and getattr(getattr(experiment, section), option) != value
    ]
    return with_overrides(experiment, changes), changes


def differences(before: Experiment, now: Experiment) -> Iterator[str]:
    """Options whose values differ, each with both values."""
    old, new = before.result_options(), now.result_options()
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} was {old.get(name)}, now {new.get(name)}"


def keep_only_best(run: Run, why: str, history: list[dict[str, float]]) -> None:
    """Delete a run's last checkpoints and keep the best one; the run cannot be resumed any more.

    Args:
        run: A run that has ended. Nothing is deleted if it has no best checkpoint.
        why: The reason, for messages, such as "lost its search".
        history: Metrics of all epochs; of the checkpoints, only the last one has them.

    Raises:
        OSError: The folder cannot be written.
    """
    folders = files.list_folders(run.uri)
    if not any(name.startswith(BEST) for name in folders):
        return
    file = files.join(run.uri, ONLY_BEST_FILE)
    if not files.exists(file):  # written first: a kill leaves too much rather than too little
        files.write_bytes(file, json.dumps({"why": why, "history": history}).encode())
    for name in folders:
        if name.startswith(LAST):
            files.delete_folder(files.join(run.uri, name))


def why_only_best(run: Run) -> str | None:
    """The reason why only a run's best checkpoint was kept; None if nothing was deleted."""
    content = _read_only_best(run)
    return str(content["why"]) if content else None


def saved_history(run: Run) -> list[dict[str, float]] | None:
    """Metrics of each epoch of a run without its last checkpoint; None if nothing was deleted."""
    content = _read_only_best(run)
    return list(content["history"]) if content else None


def _read_only_best(run: Run) -> dict[str, Any] | None:
    try:
        return dict(json.loads(files.read_bytes(files.join(run.uri, ONLY_BEST_FILE))))
    except FileNotFoundError:
        return None


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """An experiment with absolute paths, which mean the same in every process and later on."""
    sections = {
        section: getattr(experiment, section).model_copy(update={name: paths.absolute(path)})
        for section, name, path in (
            ("data", "path", experiment.data.path),
            ("tracking", "runs", experiment.tracking.runs),
            ("model", "weights", experiment.model.weights_file),
        )
        if path is not None
    }
    return experiment.model_copy(update=sections)


def reference(run: Run) -> str:
    """A run as an argument of a command: its name if it lies in ./runs, otherwise its folder."""
    folder = paths.for_display(paths.absolute(run.uri))
    return run.name if folder == f"runs/{run.name}" else folder


def local_folder(run: Identity) -> Path:
    """The folder of a run or search on the driver's disk, for its journal, log and report.

    This is its own folder, or one in the user's cache if its own is remote.
    """
    if paths.is_local(run.uri):
        return Path(files.resolve(run.uri)[1])
    return paths.user_cache() / "bcl_ray" / run.uid
