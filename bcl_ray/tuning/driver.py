"""A search from its driver: check, cut validation data, run trials, confirm, name a winner."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from bcl_ray.data.shards import MANIFEST, Manifest, read_manifest
from bcl_ray.data.shards.holdout import hold_out, own_validation
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.autoscaler import start_ray_data_actors
from bcl_ray.ray_runtime.connection import Resources, check_places, connected
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, stop_signals
from bcl_ray.runs import run_folder
from bcl_ray.runs.budget import budget
from bcl_ray.runs.driver_log import log_to_file
from bcl_ray.storage import files, paths
from bcl_ray.storage.lease import Lease, LeaseRequest
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker, tracking_uri
from bcl_ray.tuning import ledger as ledgers
from bcl_ray.tuning.capacity import data_cpus, slots
from bcl_ray.tuning.checks import check
from bcl_ray.tuning.freed_resources import ResourceWatcher
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.samplers import Searcher, make_searcher
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.tidy import tidy
from bcl_ray.tuning.trials import Trial, best, repeats, row
from bcl_ray.tuning.tune_run import Tuning, our_node
from bcl_ray.tuning.tune_searcher import Follow
from bcl_ray.tuning.winner import conclude

TRACKING_PATIENCE = 60.0  # seconds that a finished search waits for its tracking server


class SearchError(FailedError):
    """A search that ended without a winner; says why."""


def search(
    name: str,
    experiment: Experiment,
    settings: Settings,
    extent: Extent,
    *,
    follow: Follow,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a search to its end; returns the winner, as the event `winner` has it.

    Args:
        name: of the search; its folder is <tracking.runs>/<name>.
        experiment: what is searched around.
        settings: which trials there are, and how they are compared.
        extent: how many.
        follow: called from any thread with events: `search`, `trial`, `confirm`, `note`,
            `winner`.
        resume: go on with a search that was begun.

    Raises:
        ValueError: the search cannot work, its name is taken, or it was begun with another
            configuration; before anything is written.
        LeaseHeldError: another driver has the search.
        LeaseLostError: another driver has taken over, while this one was frozen or cut off.
        SearchError: no trial came to its end.
        Stopped: SIGINT or SIGTERM came; running trials have written checkpoints.
    """

    def note(text: str) -> None:
        follow({"kind": "note", "text": text})

    experiment = run_folder.with_absolute_paths(experiment)
    manifest = read_manifest(experiment.data.path)
    uri = run_folder.run_uri(name, experiment.tracking.runs)
    check(name, experiment, settings, extent, manifest, connected=ray.is_initialized())
    tracked_at = tracking_uri(experiment)
    if resume:
        ledger = ledgers.open_search(uri)
        ledgers.check_resumable(ledger, settings, experiment, manifest.fingerprint)
    else:
        ledgers.check_free(uri, settings, experiment)
    lease_request = LeaseRequest(uri, f"search '{name}'", note)
    lease_request.check_free(wait=resume)
    with connected() as resources:
        count = _slots(extent, experiment, manifest, resources)
        start_ray_data_actors()
        with (
            lease_request.acquire(wait=resume) as lease,
            contextlib.ExitStack() as stack,
        ):
            if resume:
                ledger = ledgers.resume(ledger, extent, experiment)
            else:
                ledger = ledgers.begin(uri, settings, extent, experiment, manifest.fingerprint)
            ledger = replace(ledger, fence=lease.fence)
            folder = local_folder(ledger)
            stack.enter_context(log_to_file(folder, lambda: lease.lost is None))
            follow(_begin_event(ledger, count, tracked_at))
            data = _data_options(ledger, manifest)  # a signal may end this at once
            stop_request = stack.enter_context(stop_signals())
            tracker = stack.enter_context(Tracker(_subject(ledger), tracked_at, folder, lease))
            _describe(tracker, ledger, manifest)
            reporter = _Reporter(tracker, follow)
            trials = _Search(ledger, data, resources, count, reporter, stop_request, lease).trials()
            lease.check()
            winner = conclude(
                ledger, trials, manifest, tracker=tracker, folder=folder, note=reporter.note
            )
            tidy(ledger, trials, winner["trial"], note=reporter.note)
            winner["tracked"] = tracker.finish("FINISHED", TRACKING_PATIENCE)
            winner["problem"] = tracker.problem
    follow({"kind": "winner", **winner})
    return winner


def local_folder(ledger: Ledger) -> Path:
    """Where this machine keeps what a search records and draws."""
    return run_folder.local_folder(
        run_folder.Run(ledger.uri, ledger.uid, ledger.digest, ledger.fingerprint)
    )


@dataclass(frozen=True)
class _Search:
    """A search that has begun, in this process."""

    ledger: Ledger
    data: Sequence[str]  # options of where trials' data lie
    resources: Resources
    slots: int
    reporter: "_Reporter"
    stop_request: StopRequest
    lease: Lease

    def trials(self) -> list[Trial]:
        """All trials, ended."""
        ledger, known = self.ledger, self.ledger.trials()
        for trial in known:
            self.reporter.old(trial)
        own = [trial for trial in known if trial.seed is None]
        repeated = [trial for trial in known if trial.seed is not None]
        options = self._options()
        try:
            with ResourceWatcher(ledger.uid, self.reporter.note) as watcher:
                tuning = Tuning(
                    ledger,
                    self.slots,
                    options,
                    self.reporter,
                    watcher,
                    self.stop_request,
                    self.lease,
                )
                total = ledger.extent.trials
                trials = tuning.run(own, total=total, chooser=self._chooser(own))
                if best(trials) is None:
                    raise SearchError(_why_none(trials, total))
                _check_ended(ledger, trials)
                if ledger.extent.confirm:
                    k, n = ledger.extent.confirm
                    seed = ledger.experiment.train.seed
                    trials = repeats([*trials, *repeated], k, n, seed)
                    self.reporter.confirm(sum(trial.seed is not None for trial in trials))
                    trials = tuning.run(trials)
                    _check_ended(ledger, trials)
                    return trials
                return [*trials, *repeated]
        except Stopped as stop:
            text = f"{stop}; go on with: {command()} search --resume {_reference(ledger)}"
            raise Stopped(text, stop.signum) from None

    def _chooser(self, known: Sequence[Trial]) -> Searcher:
        """The searcher, which remembers the trials that have ended."""
        settings = self.ledger.settings
        chooser = make_searcher(settings.searcher, self.ledger.space, settings.seed, len(known))
        for trial in known:
            if trial.status != "running":
                chooser.tell(trial.number, trial.point, trial.scores, trial.status)
        return chooser

    def _options(self) -> list[str]:
        """Options that all trials have alike."""
        ledger = self.ledger
        trial = ledger.extent.of_trial(ledger.experiment)
        options = [
            f"scale.workers={trial.scale.workers}",
            f"scale.gpus_per_worker={trial.scale.gpus_per_worker}",
            *self._share(trial),
            *self.data,
            f"tracking.runs={ledger.uri}",
            f"tracking.uri={tracking_uri(ledger.experiment)}",
        ]
        trial = with_overrides(ledger.experiment, options)
        budget(trial, read_manifest(trial.data.path), None)  # fewer images than in the whole
        return options

    def _share(self, trial: Experiment) -> list[str]:
        """How trials share CPUs for data; where nodes come, each asks for its own."""
        if self.resources.grows:
            return []
        return [f"scale.data_cpus={data_cpus(trial, self.resources.cpus, self.slots):g}"]


def _reference(ledger: Ledger) -> str:
    """How a command names a search, with where it lies unless that is the usual place."""
    root = paths.for_display(paths.parent(ledger.uri))
    return ledger.name if root == "runs" else f"{ledger.name} tracking.runs={root}"


def _check_ended(ledger: Ledger, trials: Sequence[Trial]) -> None:
    """Refuse to name a winner while trials are left that a store or nodes held up.

    Raises:
        SearchError: with how to go on.
    """
    held_up = [trial.name for trial in trials if trial.status == "running"]
    if held_up:
        raise SearchError(
            f"{', '.join(held_up)} did not come to an end, and may yet; go on with: bcl-ray search "
            f"--resume {_reference(ledger)}"
        )


def _why_none(trials: Sequence[Trial], wanted: int) -> str:
    reasons = dict.fromkeys(str(trial.reason) for trial in trials if trial.reason)
    return (
        f"no trial came to its end: {len(trials)} of {wanted} were begun, and failed: "
        + "; ".join(list(reasons)[:3])
    )


def _data_options(ledger: Ledger, manifest: Manifest) -> list[str]:
    """Where trials' data lie: cut once, or as they came."""
    own = own_validation(manifest, ledger.experiment.data.eval_split)
    if own is not None:
        return [f"data.eval_split={own}"]
    data, settings, target = ledger.experiment.data, ledger.settings, ledger.place("data")
    if not files.exists(files.join(target, MANIFEST)):
        share = settings.validation
        hold_out(data.path, target, share, settings.seed, split=data.train_split)
    return [f"data.path={target}", "data.train_split=train", "data.eval_split=validation"]


def _slots(extent: Extent, experiment: Experiment, manifest: Manifest, resources: Resources) -> int:
    trial = extent.of_trial(experiment)
    check_places(trial, resources)
    if not resources.limited and extent.max_concurrent is None:
        raise UserError(
            "the cluster grows, and nobody has said how far: give --max-concurrent, or set "
            f"{node_groups.VARIABLE} on its head"
        )
    count = slots(trial, manifest, resources, our_node()["Resources"].get("memory", 0.0))
    return min(count, extent.max_concurrent or count, extent.trials)


def _subject(ledger: Ledger) -> Subject:
    """A search as the tracker knows it."""
    settings, experiment = ledger.settings, ledger.experiment
    parameters = {
        "searcher": settings.searcher,
        "scheduler": settings.scheduler,
        "metric": settings.metric,
        "validation": str(settings.validation),
        **{parameter.name: str(parameter) for parameter in ledger.space.parameters},
    }
    tags = {
        "recipe": experiment.name,
        "digest": ledger.digest,
        "kind": "search",
        "data.fingerprint": ledger.fingerprint,
    }
    return Subject(ledger.uid, ledger.name, experiment.tracking.experiment, parameters, tags)


def _describe(tracker: Tracker, ledger: Ledger, manifest: Manifest) -> None:
    """Record what is searched around, and on which data."""
    experiment, data = ledger.experiment, ledger.experiment.data
    tracker.start()
    tracker.text(run_folder.EXPERIMENT_FILE, experiment.to_yaml())
    tracker.dataset(manifest, data.path, data.train_split, "training")
    tracker.dataset(manifest, data.path, data.eval_split, "test")


def _begin_event(ledger: Ledger, count: int, tracked_at: str) -> dict[str, Any]:
    settings, extent, experiment = ledger.settings, ledger.extent, ledger.experiment
    return {
        "kind": "search",
        "search": ledger.name,
        "folder": paths.for_display(ledger.uri),
        "recipe": experiment.name,
        "data": paths.for_display(experiment.data.path),
        "trials": extent.trials,
        "slots": count,
        "workers": extent.of_trial(experiment).scale.shown_workers,
        "epochs": experiment.train.epochs,
        "searcher": settings.searcher,
        "scheduler": settings.scheduler,
        "metric": settings.metric,
        "space": [str(parameter) for parameter in ledger.space.parameters],
        "tracking_uri": tracked_at,
    }


class _Reporter:
    """Passes on what happens, to the person and to MLflow."""

    def __init__(self, tracker: Tracker, follow: Follow) -> None:
        self._tracker, self._follow = tracker, follow
        self._ended: dict[str, float | None] = {}  # scores of trials

    def __call__(self, event: dict[str, Any]) -> None:
        """An event of a trial, or a note."""
        self._follow(event)
        own = event["kind"] == "trial" and event["seed"] is None  # a repeat is no trial more
        if own and event["status"] != "running" and event["trial"] not in self._ended:
            self._ended[event["trial"]] = event["score"] if event["status"] == "finished" else None
            scores = [score for score in self._ended.values() if score is not None]
            best = {"score/best": max(scores)} if scores else {}
            self._tracker.metrics({**best, "trials/ended": len(self._ended)}, len(self._ended))

    def old(self, trial: Trial) -> None:
        """A trial of an earlier process."""
        self({"kind": "trial", **row(trial), "old": True})

    def confirm(self, runs: int) -> None:
        """So many runs with other seeds there are, ended ones among them."""
        self._follow({"kind": "confirm", "runs": runs})

    def note(self, text: str) -> None:
        """What a person should know."""
        self._follow({"kind": "note", "text": text})
