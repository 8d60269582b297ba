"""The ledger of a search, with its settings and its results.

<tracking.runs>/<name>/search.json             settings, size, identity and digest
<tracking.runs>/<name>/data/                   the training and validation splits, if they were cut
<tracking.runs>/<name>/winner.json             metrics of the best trial on test data
<tracking.runs>/<name>/winner.yaml             the best trial, as a recipe
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.runs import identity
from bcl_ray.storage import files
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.space import Space, overrides
from bcl_ray.tuning.space_parser import parse_space
from bcl_ray.tuning.trials import Trial

SEARCH_FILE = identity.SEARCH.file


@dataclass(frozen=True)
class SearchLedger(Ledger):
    """A search; its experiment is the one whose options are searched, with the whole data set."""

    kind = identity.SEARCH

    settings: Settings
    extent: Extent  # of the last command; it may change on --resume

    @property
    def metric(self) -> str:
        """The score that the search maximises."""
        return self.settings.metric

    @property
    def scheduler(self) -> str:
        """The scheduler of the search's own trials."""
        return self.settings.scheduler

    @property
    def resume_command(self) -> str:
        """The command that resumes the search, without `bcl-ray`."""
        return f"search --resume {self.name}{self.runs_option}"

    @property
    def space(self) -> Space:
        """The searched options, around the experiment of a trial."""
        return parse_space(self.settings.space, self.extent.of_trial(self.experiment))

    def experiment_of(self, trial: Trial) -> Experiment:
        """The experiment with the trial's point and seed; what it leaves open follows from both."""
        seed = [] if trial.seed is None else [f"train.seed={trial.seed}"]
        return resolved(with_overrides(self.experiment, [*overrides(trial.point), *seed]))


def digest(settings: Settings, experiment: Experiment) -> str:
    """A hash of all that determines the trials of a search, 12 hex digits."""
    parameters = [asdict(p) for p in parse_space(settings.space, experiment).parameters]
    content = {**asdict(settings), "space": parameters, "experiment": experiment.digest()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def begin(
    uri: str, settings: Settings, extent: Extent, experiment: Experiment, fingerprint: str
) -> SearchLedger:
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
    ledger = SearchLedger(
        uri,
        identity.new_uid(),
        digest(settings, experiment),
        fingerprint,
        experiment,
        settings,
        extent,
    )
    identity.write_experiment(uri, experiment)
    _write(ledger)
    return ledger


def _write(ledger: SearchLedger) -> None:
    content = {
        "uid": ledger.uid,
        "digest": ledger.digest,
        "fingerprint": ledger.fingerprint,
        "settings": asdict(ledger.settings),
        "extent": asdict(ledger.extent),
    }
    identity.write(ledger.uri, identity.SEARCH, content)


def check_free(uri: str, settings: Settings, experiment: Experiment) -> None:
    """Refuse a folder that holds a search, a study or a run.

    Raises:
        ValueError: The folder holds one; the message says how to resume it.
    """
    identity.check_holds_no_other(uri, identity.SEARCH)
    if files.exists(files.join(uri, identity.SEARCH.file)):
        ledger = open_search(uri)
        raise ledger.name_taken(digest(settings, experiment), reference=ledger.name)


def open_search(uri: str) -> SearchLedger:
    """Open a search that was begun before.

    Raises:
        ValueError: The folder holds no search, or its files were edited.
    """
    content, experiment = identity.read(uri, identity.SEARCH)
    settings, extent = Settings(**content["settings"]), content["extent"]
    if extent["confirm"]:
        extent["confirm"] = tuple(extent["confirm"])
    ledger = SearchLedger(
        uri,
        content["uid"],
        content["digest"],
        content["fingerprint"],
        experiment,
        settings,
        Extent(**extent),
    )
    ledger.check_unedited(digest(settings, experiment))
    return ledger


def check_resumable(
    ledger: SearchLedger, settings: Settings, experiment: Experiment, fingerprint: str
) -> None:
    """Refuse to resume a search with another configuration or other data.

    Of the experiment, only data.path, scale and tracking may differ.

    Raises:
        ValueError: The configuration or the data differ.
    """
    new_digest = digest(settings, experiment)
    if new_digest != ledger.digest:
        raise ledger.configuration_changed(f"digest {ledger.digest}, now {new_digest}")
    ledger.check_data(experiment.data.path, fingerprint)


def resume(ledger: SearchLedger, extent: Extent, experiment: Experiment) -> SearchLedger:
    """Resume a search, perhaps with another size and other locations of data and runs."""
    ledger = replace(ledger, extent=extent, experiment=experiment)
    _write(ledger)
    return ledger
