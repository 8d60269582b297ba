"""What a search has found so far, in files, from which it goes on.

<tracking.runs>/<name>/search.json             settings, identity, digest; written once
<tracking.runs>/<name>/experiment.yaml         what is searched around
<tracking.runs>/<name>/data/                   the split that was cut, where one was
<tracking.runs>/<name>/<trial>/trial.json      a trial's point, scores and end, beside its run
<tracking.runs>/<name>/winner.yaml             the best trial, as a recipe
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import Fence
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.space import Space, parse_space
from bcl_ray.tuning.trials import Trial

SEARCH_FILE, TRIAL_FILE = "search.json", "trial.json"


@dataclass(frozen=True)
class Ledger:
    """A search's folder.

    Args:
        uri: of the folder.
        uid: 32 hex digits, by which MLflow finds the search again.
        settings: which trials there are.
        extent: how many, as it was wanted last.
        experiment: what is searched around; its data are the whole ones.
        fingerprint: of those data.
        fence: asked before a trial is written down, by the driver that has the search.
    """

    uri: str
    uid: str
    settings: Settings
    extent: Extent
    experiment: Experiment
    fingerprint: str
    fence: Fence | None = None

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return self.uri.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def digest(self) -> str:
        """Twelve hex digits of all that decides what a trial is and how it is compared."""
        return digest(self.settings, self.experiment)

    @property
    def space(self) -> Space:
        """The searched options, of a trial as its extent has it."""
        return parse_space(self.settings.space, self.extent.of_trial(self.experiment))

    def place(self, *parts: str) -> str:
        """URI of a file in the folder."""
        return files.join(self.uri, *parts)

    def trials(self) -> list[Trial]:
        """All trials that were begun, by number; repeats come after those that they repeat."""
        return sorted(self._read(), key=lambda trial: (trial.number, trial.seed or -1))

    def _read(self) -> Iterator[Trial]:
        for folder in files.list_folders(self.uri):
            try:
                content = json.loads(files.read_bytes(self.place(folder, TRIAL_FILE)))
            except FileNotFoundError:
                continue
            scores = {int(epoch): score for epoch, score in content.pop("scores").items()}
            yield Trial(**content, scores=scores)

    def save(self, trial: Trial) -> None:
        """Write a trial down.

        Raises:
            LeaseLostError: another driver has the search.
        """
        if self.fence is not None:
            self.fence.check()
        content = json.dumps(asdict(trial), indent=1).encode()
        files.write_bytes(self.place(trial.name, TRIAL_FILE), content)


def digest(settings: Settings, experiment: Experiment) -> str:
    """Twelve hex digits of a search's settings and of the experiment that it changes."""
    parameters = [asdict(p) for p in parse_space(settings.space, experiment).parameters]
    content = {**asdict(settings), "space": parameters, "experiment": experiment.digest()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def begin(
    uri: str, settings: Settings, extent: Extent, experiment: Experiment, fingerprint: str
) -> Ledger:
    """Begin a search in a folder of its own.

    Raises:
        ValueError: the folder holds a search or a run.
    """
    check_free(uri, settings, experiment)
    ledger = Ledger(uri, secrets.token_hex(16), settings, extent, experiment, fingerprint)
    files.write_bytes(ledger.place(run_folder.EXPERIMENT_FILE), experiment.to_yaml().encode())
    _write(ledger)
    return ledger


def _write(ledger: Ledger) -> None:
    content = {
        "uid": ledger.uid,
        "digest": ledger.digest,
        "fingerprint": ledger.fingerprint,
        "settings": asdict(ledger.settings),
        "extent": asdict(ledger.extent),
    }
    files.write_bytes(ledger.place(SEARCH_FILE), json.dumps(content, indent=1).encode())


def check_free(uri: str, settings: Settings, experiment: Experiment) -> None:
    """Refuse a folder that holds a search or a run.

    Raises:
        ValueError: with how to go on.
    """
    if files.exists(files.join(uri, run_folder.RUN_FILE)):
        raise UserError(
            f"--name: {paths.for_display(uri)} holds a run: give the search another name"
        )
    if not files.exists(files.join(uri, SEARCH_FILE)):
        return
    ledger = open_search(uri)
    now = digest(settings, experiment)
    if now != ledger.digest:
        raise UserError(_other(ledger, now))
    raise UserError(
        f"search '{ledger.name}' exists in {paths.for_display(paths.parent(uri))} with this "
        f"configuration: go on with --resume {ledger.name}, or give the new one another --name"
    )


def open_search(uri: str) -> Ledger:
    """A search that was begun.

    Raises:
        ValueError: the folder holds none, or its files were changed since.
    """
    try:
        content = json.loads(files.read_bytes(files.join(uri, SEARCH_FILE)))
    except FileNotFoundError:
        raise UserError(
            f"{paths.for_display(uri)} holds no search (no {SEARCH_FILE}): name one that "
            "`bcl-ray search` began, or set tracking.runs to where it is"
        ) from None
    file = files.join(uri, run_folder.EXPERIMENT_FILE)
    experiment = from_yaml(files.read_bytes(file).decode(), origin=file)
    extent = content["extent"]
    if extent["confirm"]:
        extent["confirm"] = tuple(extent["confirm"])
    ledger = Ledger(
        uri,
        content["uid"],
        Settings(**content["settings"]),
        Extent(**extent),
        experiment,
        content["fingerprint"],
    )
    if ledger.digest != content["digest"]:
        raise UserError(
            f"{file} or {SEARCH_FILE} is not what search '{ledger.name}' began with (digest "
            f"{ledger.digest}, was {content['digest']}): restore it, or begin another search"
        )
    return ledger


def check_resumable(
    ledger: Ledger, settings: Settings, experiment: Experiment, fingerprint: str
) -> None:
    """Refuse to go on with a search with another configuration or other data.

    Only data.path, scale and tracking of the experiment may differ.

    Raises:
        ValueError: naming what differs.
    """
    now = digest(settings, experiment)
    if now != ledger.digest:
        raise UserError(_other(ledger, now))
    if fingerprint != ledger.fingerprint:
        raise UserError(
            f"data.path {experiment.data.path} holds other data (fingerprint {fingerprint[:12]}) "
            f"than search '{ledger.name}' was begun with ({ledger.fingerprint[:12]})"
        )


def resume(ledger: Ledger, extent: Extent, experiment: Experiment) -> Ledger:
    """A search that goes on, with another extent perhaps, and where things lie now."""
    ledger = replace(ledger, extent=extent, experiment=experiment)
    _write(ledger)
    return ledger


def _other(ledger: Ledger, now: str) -> str:
    return (
        f"search '{ledger.name}' was begun with another configuration (digest {ledger.digest}, "
        f"now {now}): only --trials, --workers-per-trial, --max-concurrent, --gpus-per-worker, "
        "--confirm, data.path, scale.* and tracking.* may change; give others another --name"
    )
