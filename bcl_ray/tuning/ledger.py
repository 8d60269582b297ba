"""The ledger of a search: all settings and results in files, from which the search is resumed.

<tracking.runs>/<name>/search.json             settings, size, identity and digest
<tracking.runs>/<name>/experiment.yaml         the experiment whose options are searched
<tracking.runs>/<name>/data/                   the training and validation splits, if they were cut
<tracking.runs>/<name>/<trial>/trial.json      a trial's point, scores and end, beside its run
<tracking.runs>/<name>/winner.json             metrics of the best trial on test data
<tracking.runs>/<name>/winner.yaml             the best trial, as a recipe
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import identity
from bcl_ray.runs.identity import Identity
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import Fence
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.space import Space
from bcl_ray.tuning.space_parser import parse_space
from bcl_ray.tuning.trials import Trial

SEARCH_FILE, TRIAL_FILE = identity.SEARCH.file, "trial.json"
PARALLEL_REQUESTS = 16  # to hide the latency of an object store


@dataclass(frozen=True)
class Ledger(Identity):
    """A search, and the files in its folder."""

    kind = identity.SEARCH

    settings: Settings
    extent: Extent  # of the last command; it may change on --resume
    experiment: Experiment  # its options are searched; its data are the whole data set
    fence: Fence | None = None  # of this driver's lease, checked before a trial is written

    @property
    def space(self) -> Space:
        """The searched options, around the experiment of a trial."""
        return parse_space(self.settings.space, self.extent.of_trial(self.experiment))

    def file(self, *parts: str) -> str:
        """URI of a file in the folder."""
        return files.join(self.uri, *parts)

    def trials(self) -> list[Trial]:
        """All trials so far, by number; repeats come after the trial that they repeat."""
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            found = list(pool.map(self._read_trial, files.list_folders(self.uri)))
        trials = [trial for trial in found if trial is not None]
        return sorted(trials, key=lambda trial: (trial.number, trial.seed or -1))

    def _read_trial(self, folder: str) -> Trial | None:
        try:
            content = json.loads(files.read_bytes(self.file(folder, TRIAL_FILE)))
        except FileNotFoundError:
            return None
        scores = {int(epoch): score for epoch, score in content.pop("scores").items()}
        return Trial(**content, scores=scores)

    def save(self, *trials: Trial) -> None:
        """Write trials, each to its own file.

        Raises:
            LeaseLostError: Another driver has taken over the search.
        """
        if self.fence is not None:
            self.fence.check()
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            list(pool.map(self._write_trial, trials))

    def _write_trial(self, trial: Trial) -> None:
        content = json.dumps(asdict(trial), indent=1).encode()
        files.write_bytes(self.file(trial.name, TRIAL_FILE), content)


def digest(settings: Settings, experiment: Experiment) -> str:
    """A hash of all that determines the trials of a search, 12 hex digits."""
    parameters = [asdict(p) for p in parse_space(settings.space, experiment).parameters]
    content = {**asdict(settings), "space": parameters, "experiment": experiment.digest()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def begin(
    uri: str, settings: Settings, extent: Extent, experiment: Experiment, fingerprint: str
) -> Ledger:
    """Begin a search in a new folder.

    Args:
        uri: The folder.
        settings: Settings of the search.
        extent: Size of the search.
        experiment: Experiment whose options are searched.
        fingerprint: Fingerprint of the experiment's data.

    Raises:
        ValueError: The folder holds a search or a run.
    """
    check_free(uri, settings, experiment)
    ledger = Ledger(
        uri,
        identity.new_uid(),
        digest(settings, experiment),
        fingerprint,
        settings,
        extent,
        experiment,
    )
    identity.write_experiment(uri, experiment)
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
    identity.write(ledger.uri, identity.SEARCH, content)


def check_free(uri: str, settings: Settings, experiment: Experiment) -> None:
    """Refuse a folder that holds a search or a run.

    Raises:
        ValueError: The folder holds one; the message says how to resume it.
    """
    if files.exists(files.join(uri, identity.RUN.file)):
        raise UserError(
            f"--name: {paths.for_display(uri)} holds a run: give the search another name"
        )
    if files.exists(files.join(uri, identity.SEARCH.file)):
        ledger = open_search(uri)
        raise ledger.name_taken(digest(settings, experiment), reference=ledger.name)


def open_search(uri: str) -> Ledger:
    """Open a search that was begun before.

    Raises:
        ValueError: The folder holds no search, or its files were edited.
    """
    content, experiment = identity.read(uri, identity.SEARCH)
    settings, extent = Settings(**content["settings"]), content["extent"]
    if extent["confirm"]:
        extent["confirm"] = tuple(extent["confirm"])
    ledger = Ledger(
        uri,
        content["uid"],
        content["digest"],
        content["fingerprint"],
        settings,
        Extent(**extent),
        experiment,
    )
    ledger.check_unedited(digest(settings, experiment))
    return ledger


def check_resumable(
    ledger: Ledger, settings: Settings, experiment: Experiment, fingerprint: str
) -> None:
    """Refuse to resume a search with another configuration or other data.

    Of the experiment, only data.path, scale and tracking may differ.

    Raises:
        ValueError: The configuration or the data differ.
    """
    new_digest = digest(settings, experiment)
    ledger.check_configuration(new_digest, f"digest {ledger.digest}, now {new_digest}")
    ledger.check_data(experiment.data.path, fingerprint)


def resume(ledger: Ledger, extent: Extent, experiment: Experiment) -> Ledger:
    """Resume a search, perhaps with another size and other locations of data and runs."""
    ledger = replace(ledger, extent=extent, experiment=experiment)
    _write(ledger)
    return ledger
