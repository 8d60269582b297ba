"""Between Ray Tune and the ledger: which trial is next, and what has become of those before."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray.tune import Stopper
from ray.tune.search import Searcher

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.ray_runtime.stopping import StopRequest
from bcl_ray.tuning.freed_resources import ResourceWatcher
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.samplers import Searcher as Chooser
from bcl_ray.tuning.space import overrides
from bcl_ray.tuning.trials import Trial, row

Follow = Callable[[dict[str, Any]], None]

HOPELESS = 3  # trials that failed, and none that did not, after which the search gives up


class _Here:
    """Tune pickles what it is given, for a restore that does not come: the ledger has it all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Conductor(_Here, Searcher):
    """Hands Tune the trials that were begun before, then new ones, and writes down what they say.

    Args:
        ledger: where it is written.
        trials: that are known; those that are running go on first.
        total: trials in all.
        chooser: of new points; None: there are no new trials.
        options: of every trial: where its data and its run lie, and its share of the cluster.
        follow: called with events: `trial` whenever there is news of one.
        watcher: is told when trials end.
    """

    def __init__(
        self,
        ledger: Ledger,
        trials: Iterable[Trial],
        total: int,
        *,
        chooser: Chooser | None,
        options: Sequence[str],
        follow: Follow,
        watcher: ResourceWatcher,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.trials = {trial.name: trial for trial in trials}
        self._waiting = [trial for trial in self.trials.values() if trial.status == "running"]
        self._ledger, self._total, self._chooser = ledger, total, chooser
        self._options, self._follow, self._keeper = options, follow, watcher
        self.interrupted = False  # trials end, and are to go on later
        self._held: set[str] = set()  # trials that are to be tried again by another process
        self._names: dict[str, str] = {}  # by Tune's id
        self._since: dict[str, float] = {}

    def interrupt(self) -> None:
        """Begin no more trials, and end those that run: they can go on later."""
        self.interrupted = True

    @property
    def hopeless(self) -> bool:
        """Whether trials only fail."""
        failed = [trial for trial in self.trials.values() if trial.status == "failed"]
        some = any(trial.scores for trial in self.trials.values())
        return not some and len(failed) + len(self._held) >= min(HOPELESS, self._total)

    def suggest(self, trial_id: str) -> Any:
        """The next trial, as Tune's config."""
        if self.hopeless or self.interrupted:
            return str(Searcher.FINISHED)
        trial = self._waiting.pop(0) if self._waiting else self._new()
        if trial is None:
            return str(Searcher.FINISHED)
        self._names[trial_id], self._since[trial.name] = trial.name, time.monotonic()
        trial.reason = None
        config = self.config(trial)
        self._ledger.save(trial)
        self._tell(trial)
        return config

    def config(self, trial: Trial) -> dict[str, Any]:
        """What a trial's process is given."""
        seed = [] if trial.seed is None else [f"train.seed={trial.seed}"]
        experiment = with_overrides(
            self._ledger.experiment,
            [*overrides(trial.point), *seed, *self._options, f"tracking.run={trial.name}"],
        )
        return {
            "number": trial.number,
            "trial": trial.name,
            "experiment": experiment.to_yaml(),
            "metric": self._ledger.settings.metric,
            "parent": self._ledger.uid,
            "reported": trial.epochs,
        }

    def _new(self) -> Trial | None:
        number = max((trial.number for trial in self.trials.values()), default=-1) + 1
        if self._chooser is None or number >= self._total:
            return None
        point = self._ledger.space.published if number == 0 else self._chooser.ask(number)
        if point is None:
            return None
        trial = Trial(f"trial-{number:03d}", number, point)
        self.trials[trial.name] = trial
        return trial

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Write down an evaluation, or pass on a note."""
        if "note" in result:
            text = f"{self.trials[self._names[trial_id]].name}: {result['note']}"
            self._follow({"kind": "note", "text": text})
        if "score" in result:
            trial = self.trials[self._names[trial_id]]
            trial.scores[int(result["epochs"])] = float(result["score"])
            trial.metrics = json.loads(result["metrics"])
            self._save(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Write down an end; a trial that is to go on later has none."""
        trial, result = self.trials[self._names[trial_id]], result or {}
        self._keeper.ends(trial.name)
        self.on_trial_result(trial_id, result)  # Tune tells the last one here alone
        trial.tracked = bool(result.get("tracked", trial.tracked))
        end: Any = "failed" if error else result.get("end", "stopped")
        if end in ("failed", "held up"):
            trial.reason = result.get("reason", "its process died again and again: see Ray's logs")
        if end == "held up":
            self._held.add(trial.name)
            text = f"{trial.name} was held up: {trial.reason}; --resume goes on with it"
            self._follow({"kind": "note", "text": text})
        elif not (end == "interrupted" or self.interrupted):
            trial.status = end
        self._save(trial)
        if trial.status != "running" and self._chooser is not None:
            self._chooser.tell(trial.number, trial.point, trial.scores, trial.status)

    def _save(self, trial: Trial) -> None:
        now = time.monotonic()
        trial.seconds += now - self._since[trial.name]
        self._since[trial.name] = now
        self._ledger.save(trial)
        self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        self._follow({"kind": "trial", **row(trial)})

    def save(self, checkpoint_path: str) -> None:
        """Nothing for Tune to keep."""


class Interruption(_Here, Stopper):
    """Ends all trials when a stop is requested; they can go on later."""

    def __init__(self, conductor: Conductor, stop_request: StopRequest) -> None:
        self._conductor, self._stop_request = conductor, stop_request

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether one trial is to end: never by itself."""
        del trial_id, result  # part of Ray's signature
        return False

    def stop_all(self) -> bool:
        """Whether all are."""
        self._conductor.interrupted = (
            self._conductor.interrupted or self._stop_request.reason is not None
        )
        return self._conductor.interrupted
