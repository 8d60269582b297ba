"""The connection between Ray Tune and the ledger: which trial runs next, and what trials report."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import Stopper
from ray.tune.search import Searcher

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.ray_runtime.stopping import StopRequest
from bcl_ray.runs.events import Follow
from bcl_ray.tuning.cleanup import Cleaner
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.placement_groups import ResourceWatcher
from bcl_ray.tuning.samplers import Sampler
from bcl_ray.tuning.trials import Trial

MAX_FAILURES = 3  # a sweep gives up when so many trials have failed before any evaluation


@dataclass(frozen=True)
class Engine:
    """What runs the trials of a sweep, the same for all of them."""

    writer: LedgerWriter
    """Writes trials to the sweep's ledger."""
    cleaner: Cleaner
    """Removes checkpoints of trials that lost."""
    options: Sequence[str]
    """Options of every trial: its data, its folder, and its share of the cluster."""
    follow: Follow
    """Called with an event `trial` at every change of a trial, and with `note`."""
    watcher: ResourceWatcher
    """Learns which trials have ended."""


@dataclass(frozen=True)
class NewTrials:
    """How a search goes on after the trials that it has."""

    total: int
    """Number of trials in all."""
    sampler: Sampler
    """Chooses their points."""
    scheduler: str
    """Stops bad ones early; a name in SCHEDULERS."""


class _PickledEmpty:
    """A part of a sweep that is pickled without its state.

    Tune pickles the parts of a sweep to restore them later. Here a sweep is restored from its
    ledger instead.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneSearcher(_PickledEmpty, Searcher):
    """Gives trials to Tune, unfinished ones first, and has their results written to the ledger.

    Tune calls it between its own steps, so no method reads or writes files: threads of the engine
    do.

    Args:
        engine: What runs the trials.
        trials: Trials so far, of which those that have not ended are resumed.
        new: How new ones are chosen; None: there are no new ones.
    """

    def __init__(self, engine: Engine, trials: Iterable[Trial], new: NewTrials | None) -> None:
        super().__init__(metric="score", mode="max")
        self.trials = {trial.name: trial for trial in trials}
        self.interrupted = False  # running trials end now, to be resumed later
        self._engine, self._ledger, self._new = engine, engine.writer.ledger, new
        self._total = new.total if new else len(self.trials)
        self._queue = [trial for trial in self.trials.values() if trial.is_open]
        for trial in self._queue:
            trial.status = "running"  # whatever held it up in an earlier process, it is tried again
        self._next: Trial | None = None  # it starts when it is in the ledger
        self._by_tune_id: dict[str, Trial] = {}
        self._last_saved: dict[str, float] = {}  # monotonic time, by the trial's name

    def interrupt(self) -> None:
        """Start no more trials, and end those that run, to be resumed later."""
        self.interrupted = True

    @property
    def gives_up(self) -> bool:
        """Whether too many trials have failed, and none was evaluated even once."""
        if any(trial.scores for trial in self.trials.values()):
            return False
        without_result = [t for t in self.trials.values() if t.status in ("failed", "held up")]
        return len(without_result) >= min(MAX_FAILURES, self._total)

    def suggest(self, trial_id: str) -> Any:
        """The next trial, as Tune's config; FINISHED when there are no more.

        None while the trial is being written to the ledger: Tune asks again. A run whose trial is
        not in the ledger would be in the way of another trial of that number.
        """
        if self.gives_up or self.interrupted:
            return str(Searcher.FINISHED)
        if self._next is None:
            self._next = self._queue.pop(0) if self._queue else self._new_trial()
            if self._next is None:
                return str(Searcher.FINISHED)
            self._next.reason = None
            self._engine.writer.save(self._next)
        if not self._engine.writer.has_written(self._next):
            return None
        trial, self._next = self._next, None
        self._by_tune_id[trial_id] = trial
        self._last_saved[trial.name] = time.monotonic()
        self._engine.follow(trial.to_event())
        return self._config(trial)

    def _config(self, trial: Trial) -> dict[str, Any]:
        """The config of `TrialRun`; `number` is for the schedulers."""
        experiment = with_overrides(
            self._ledger.experiment_of(trial), [*self._engine.options, f"tracking.run={trial.name}"]
        )
        return {
            "number": trial.number,
            "trial": trial.name,
            "experiment": experiment.to_yaml(),
            "metric": self._ledger.metric,
            "sweep": self._ledger.uid,
            "sweep_kind": self._ledger.kind.noun,
            "reported": trial.epochs,
        }

    def _new_trial(self) -> Trial | None:
        number = max((trial.number for trial in self.trials.values()), default=-1) + 1
        if self._new is None or number >= self._total:
            return None
        point = self._new.sampler.ask(number)
        if point is None:
            return None
        trial = Trial(f"trial-{number:03d}", number, point)
        self.trials[trial.name] = trial
        return trial

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an evaluation, or pass on a note."""
        trial = self._by_tune_id[trial_id]
        if "note" in result:
            self._engine.follow({"kind": "note", "text": f"{trial.name}: {result['note']}"})
        if "score" in result:
            trial.scores[int(result["epochs"])] = float(result["score"])
            trial.metrics = json.loads(result["metrics"])
            self._save(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end of a trial; if a stop request interrupted it, its status stays running."""
        trial, result = self._by_tune_id[trial_id], result or {}
        self._engine.watcher.trial_ended(trial.name)
        # Tune does not pass a trial's last result to on_trial_result.
        self.on_trial_result(trial_id, result)
        trial.tracked = bool(result.get("tracked", trial.tracked))
        end: Any = "failed" if error else result.get("end", "stopped")
        if end in ("failed", "held up"):
            trial.reason = result.get("reason", "its process died again and again: see Ray's logs")
        if not (end == "interrupted" or self.interrupted):
            trial.status = end
        if end == "held up":
            noun = self._ledger.kind.noun
            text = f"{trial.name} was held up: {trial.reason}; it goes on when the {noun} does"
            self._engine.follow({"kind": "note", "text": text})
        self._save(trial)
        if not trial.is_open and self._new is not None:
            self._new.sampler.tell(trial.number, trial.point, trial.scores, trial.status)
        self._engine.cleaner.clean(list(self.trials.values()))

    def _save(self, trial: Trial) -> None:
        now = time.monotonic()
        trial.seconds += now - self._last_saved[trial.name]
        self._last_saved[trial.name] = now
        self._engine.writer.save(trial)
        self._engine.follow(trial.to_event())

    def save(self, checkpoint_path: str) -> None:
        """Save nothing for Tune: the ledger has everything."""


class StopOnRequest(_PickledEmpty, Stopper):
    """Ends all trials when a stop is requested, to be resumed later."""

    def __init__(self, searcher: TuneSearcher, stop_request: StopRequest) -> None:
        self._searcher, self._stop_request = searcher, stop_request

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a single trial is to end, which is never the case."""
        del trial_id, result  # part of Ray's signature
        return False

    def stop_all(self) -> bool:
        """Whether all trials are to end."""
        if self._stop_request.reason is not None:
            self._searcher.interrupt()
        return self._searcher.interrupted
