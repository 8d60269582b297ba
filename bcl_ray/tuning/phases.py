"""The two phases of a search: its own trials, then repeats of the best ones with other seeds."""

from collections.abc import Sequence

from bcl_ray.data.shards import read_manifest
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import FailedError
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.ray_runtime.stopping import Stopped
from bcl_ray.runs.budget import budget
from bcl_ray.storage import paths
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tuning.capacity import data_cpus
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.reporter import SearchReporter
from bcl_ray.tuning.samplers import make_sampler
from bcl_ray.tuning.trials import Trial, best_trial, own_trials, with_repeats
from bcl_ray.tuning.tune_run import TuneRunner

MAX_REASONS = 3  # of failed trials in an error message


class SearchError(FailedError):
    """A search ended without a winner; the message says why."""


def run_phases(runner: TuneRunner, reporter: SearchReporter) -> list[Trial]:
    """Run all trials and repeats of a search, and return them.

    Raises:
        SearchError: No trial finished, or some are to be resumed by a later process.
        Stopped: A stop was requested.
    """
    ledger = runner.ledger
    trials = ledger.trials()
    for trial in trials:
        reporter.show_earlier(trial)
    try:
        own = _run_own_trials(runner, own_trials(trials))
        trials = [*own, *(trial for trial in trials if trial.seed is not None)]
        if ledger.extent.confirm is None:
            return trials
        k, n = ledger.extent.confirm
        trials = with_repeats(trials, k, n, ledger.experiment.train.seed)
        reporter.show_confirmation(len(trials) - len(own))
        trials = runner.run(trials)
        _check_ended(ledger, trials)
        return trials
    except Stopped as stop:
        text = f"{stop}; go on with: {command()} search --resume {_reference(ledger)}"
        raise Stopped(text, stop.signum) from None


def _run_own_trials(runner: TuneRunner, trials: Sequence[Trial]) -> list[Trial]:
    """Run the search's own trials, at least one of which must finish."""
    ledger = runner.ledger
    settings, total = ledger.settings, ledger.extent.trials
    sampler = make_sampler(settings.searcher, ledger.space, settings.seed, len(trials))
    for trial in trials:
        if trial.status != "running":
            sampler.tell(trial.number, trial.point, trial.scores, trial.status)
    trials = runner.run(trials, total=total, sampler=sampler)
    if best_trial(trials) is None:
        reasons = dict.fromkeys(trial.reason for trial in trials if trial.reason)
        raise SearchError(
            f"no trial finished: {len(trials)} of {total} were started, and failed: "
            + "; ".join(list(reasons)[:MAX_REASONS])
        )
    _check_ended(ledger, trials)
    return trials


def common_options(
    ledger: Ledger, data_options: Sequence[str], resources: Resources, capacity: int
) -> list[str]:
    """The options that all trials have in common.

    Args:
        ledger: Ledger of the search.
        data_options: Options that name the trials' data.
        resources: Resources of the cluster.
        capacity: Number of trials that run at once.

    Raises:
        ValueError: No trial can work with these options.
    """
    experiment = ledger.experiment
    trial = ledger.extent.of_trial(experiment)
    options = [
        f"scale.workers={trial.scale.workers}",
        f"scale.gpus_per_worker={trial.scale.gpus_per_worker}",
        *data_options,
        f"tracking.runs={ledger.uri}",
        f"tracking.uri={tracking_uri(experiment)}",
    ]
    if not resources.grows:  # else nodes are added for each trial's data tasks
        options.append(f"scale.data_cpus={data_cpus(trial, resources.cpus, capacity):g}")
    trial = with_overrides(experiment, options)
    # The whole training split passed this check, but trials have fewer images.
    budget(trial, read_manifest(trial.data.path), None)
    return options


def _reference(ledger: Ledger) -> str:
    """The arguments that name a search on the command line."""
    root = paths.for_display(paths.parent(ledger.uri))
    return ledger.name if root == "runs" else f"{ledger.name} tracking.runs={root}"


def _check_ended(ledger: Ledger, trials: Sequence[Trial]) -> None:
    """Refuse to continue while some trials were held up by an outage.

    Raises:
        SearchError: These trials, and how to resume them.
    """
    held_up = [trial.name for trial in trials if trial.status == "running"]
    if held_up:
        raise SearchError(
            f"not finished: {', '.join(held_up)}; go on with: bcl-ray search --resume "
            f"{_reference(ledger)}"
        )
