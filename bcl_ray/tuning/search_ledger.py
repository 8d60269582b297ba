"""The ledger of a search, with its settings and its results, and the checks before it starts.

<tracking.runs>/<name>/search.json             settings, size, identity and digest
<tracking.runs>/<name>/data/                   the training and validation splits, if they were cut
<tracking.runs>/<name>/winner.json             metrics of the best trial on test data
<tracking.runs>/<name>/winner.yaml             the best trial, as a recipe
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.data.shards.holdout import own_validation
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import identity, run_folder
from bcl_ray.runs.budget import preflight
from bcl_ray.storage import files
from bcl_ray.storage.fence import Fence
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tuning.choices import SCHEDULERS
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.samplers import make_sampler
from bcl_ray.tuning.score import parse_score
from bcl_ray.tuning.settings import Extent, Settings, check_name
from bcl_ray.tuning.space import Space, overrides
from bcl_ray.tuning.space_parser import parse_space
from bcl_ray.tuning.trials import Trial


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


@dataclass(frozen=True)
class CheckedSearch:
    """A search that can work, and its data."""

    uri: str
    """Its folder."""
    experiment: Experiment
    """Whose options are searched; with absolute paths."""
    settings: Settings
    extent: Extent
    manifest: Manifest
    """Of the experiment's data."""
    ledger: SearchLedger | None
    """As an earlier process left it; None if the search is new."""

    def write(self, fence: Fence) -> SearchLedger:
        """Begin the search, or go on with it, in its folder; `fence` is of the folder's lease."""
        if self.ledger is not None:
            return resume(replace(self.ledger, fence=fence), self.extent, self.experiment)
        fingerprint = self.manifest.fingerprint
        ledger = begin(self.uri, self.settings, self.extent, self.experiment, fingerprint)
        return replace(ledger, fence=fence)


def check_search(
    name: str, experiment: Experiment, settings: Settings, extent: Extent, *, resume: bool
) -> CheckedSearch:
    """Refuse a search that cannot work, before Ray starts. Nothing is written.

    Args:
        name: Name of the search; its folder is <tracking.runs>/<name>.
        experiment: Experiment whose options are searched.
        settings: Settings of the search.
        extent: Size of the search.
        resume: Resume a search that exists.

    Raises:
        ValueError: An option is wrong, the name is taken, or the search began with another
            configuration or other data; the message names it.
    """
    manifest = read_manifest(experiment.data.path)
    check_name(name)
    _check_options(experiment, settings, extent, manifest)
    tracking_uri(experiment)  # refuses a wrong address
    experiment = run_folder.with_absolute_paths(experiment)
    uri = run_folder.run_uri(name, experiment.tracking.runs)
    ledger = None
    if resume:
        ledger = open_search(uri)
        check_resumable(ledger, settings, experiment, manifest.fingerprint)
    else:
        check_free(uri, settings, experiment)
    return CheckedSearch(uri, experiment, settings, extent, manifest, ledger)


def _check_options(
    experiment: Experiment, settings: Settings, extent: Extent, manifest: Manifest
) -> None:
    if extent.trials < 1:
        raise UserError(f"--trials ({extent.trials}) must be at least 1")
    if experiment.tracking.run is not None:
        raise UserError(
            "tracking.run cannot be set: the search is named by --name, its trials by numbers"
        )
    data = experiment.data
    if own_validation(manifest, data) is None and not 0 < settings.validation < 1:
        raise UserError(f"--validation ({settings.validation:g}) must be above 0 and below 1")
    trial = resolved(extent.of_trial(experiment))
    preflight(trial, manifest)
    groups = shot_groups(manifest.splits[data.train_split].class_counts)
    score = parse_score(settings.metric)
    score.check_available(["all", *groups], trial.train.geometry_every)
    SCHEDULERS.checked(settings.scheduler)
    make_sampler(settings.searcher, parse_space(settings.space, trial), settings.seed)


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
    more = {"settings": asdict(ledger.settings), "extent": asdict(ledger.extent)}
    identity.write(ledger, more)


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
