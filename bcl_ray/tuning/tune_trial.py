"""What Ray Tune runs: one trial after the other, each an ordinary run, in a process of its own.

A class, not a function: Tune ends a function's process without waiting for what it started, and
the workers' CPUs and GPUs would not come free. A class is told to clean up, and waited for.
"""

import json
import logging
import os
import queue
import threading
from typing import Any

from ray import tune

from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.ray_runtime.connection import one_line
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest
from bcl_ray.training.driver import MissingNodesError, TrainingError, fit
from bcl_ray.tuning.freed_resources import Placed, begins
from bcl_ray.tuning.score import parse_score

TICK = 2.0  # seconds

logger = logging.getLogger(__name__)


class TrialRun(tune.Trainable):
    """A trial's driver; its process takes the next trial when one has ended.

    Tune's config has: `trial`, the run's name; `experiment`, YAML; `metric`; `parent`, uid of the
    search; `reported`, epochs whose scores are known from an earlier process.

    A step is an evaluation: {"score", "epochs", "metrics" (as JSON)}, the last of which comes with
    {"end": "finished", "tracked"}, whether MLflow has all of it; or a failure, {"end": "failed",
    "reason"}, for to try it again would be to fail again; or {"end": "held up", "reason"}, by what
    is not the trial's fault. A step that waited in vain says {"waiting": True}, and so does one
    with a {"note"} for the person.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin, or go on with, a trial."""
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before, and begin another."""
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation, though not for long: Tune could not reach us meanwhile."""
        try:
            return self._told.get(timeout=TICK)
        except queue.Empty:
            return {"waiting": True}

    def cleanup(self) -> None:
        """Ask the workers to save their state and to end, and wait until they have."""
        self._stop_request.stop(f"by the search, after {self._reported} epochs")
        self._thread.join()

    def _begin(self, config: dict[str, Any]) -> None:
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stop_request = StopRequest()
        self._reported = int(config["reported"])
        self._score = parse_score(config["metric"])
        self._experiment = from_yaml(config["experiment"])
        begins(config["parent"], config["trial"])
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()

    def _run(self, config: dict[str, Any]) -> None:
        """Train to the end; what ends it is told."""
        self._told.put(self._end(config))

    def _end(self, config: dict[str, Any]) -> dict[str, Any]:
        try:
            outcome = fit(
                self._experiment,
                follow=self._follow,
                restartable=True,
                parent=config["parent"],
                stop_request=self._stop_request,
                callbacks=[Placed(config["parent"], config["trial"])],
            )
            result = self._result(outcome["history"][-1])
            return {**result, "end": "finished", "tracked": outcome["tracked"], "done": True}
        except Stopped:  # nobody waits for more, but in the last moment of an interruption
            return {"end": "interrupted", "done": True}
        # A store, a server, credentials or nodes, which may come.
        except (OSError, MissingNodesError) as error:
            return {"end": "held up", "reason": str(error), "done": True}
        except (ValueError, TrainingError) as error:
            return {"end": "failed", "reason": str(error), "done": True}
        except Exception as error:
            logger.exception("trial %s failed", config["trial"])
            return {"end": "failed", "reason": one_line(error), "done": True}

    def _follow(self, event: dict[str, Any]) -> None:
        """Pass on notes and evaluations, but for the last: a trial is done when its run is."""
        if event["kind"] == "note":
            self._told.put({"waiting": True, "note": event["text"]})
        for record in event.get("records", []):
            epochs = int(record["epoch"]) + 1
            due = self._reported < epochs < self._experiment.train.epochs
            if due and "accuracy/all" in record:
                self._reported = epochs
                self._told.put(self._result(record))

    def _result(self, record: dict[str, float]) -> dict[str, Any]:
        return {
            "score": self._score.of(record),
            "epochs": int(record["epoch"]) + 1,
            "metrics": json.dumps(record),
        }
