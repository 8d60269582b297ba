"""The class that Ray Tune runs: an actor that drives one trial after the other.

It is a class, not a function, because Tune kills a function's process without waiting for the
workers that it started, and their CPUs and GPUs would stay reserved. Tune asks a class to clean
up, and waits until it has.
"""

import json
import logging
import os
import queue
import threading
from typing import Any

from ray import tune

from bcl_ray.experiment.metric_names import ACCURACY
from bcl_ray.experiment.overrides import from_stored
from bcl_ray.ray_runtime.connection import one_line
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest
from bcl_ray.training.driver import fit
from bcl_ray.training.outcome import MissingNodesError, TrainingError
from bcl_ray.tuning.placement_groups import PlacementGroupRecorder, record_start
from bcl_ray.tuning.score import parse_score

STEP_SECONDS = 2.0  # the longest time that `step` waits for an evaluation

logger = logging.getLogger(__name__)


class TrialRun(tune.Trainable):
    """The driver of a trial; its process is used again for the next trial.

    Tune's config has `trial`, the name of the run; `experiment`, YAML; `metric`; `sweep`, its uid;
    `sweep_kind`, a search or a study; and `reported`, the epochs whose scores an earlier process
    has reported.

    The result of a step is one of these:

    - {"score", "epochs", "metrics"}: an evaluation, with its metrics as JSON. The last one also
      has {"end": "finished", "tracked"}; `tracked` says whether MLflow has the whole run.
    - {"end": "failed", "reason"}: a failure that a second attempt would meet again.
    - {"end": "held up", "reason"}: a failure that is not the trial's fault, such as an outage.
    - {"end": "interrupted"}: the trial was asked to stop.
    - {"waiting": True}: no evaluation yet; perhaps with a {"note"} for the user.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Start or resume a trial."""
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Replace the current trial by another one."""
        self.cleanup()
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait up to STEP_SECONDS for the next result; Tune cannot call this actor meanwhile."""
        try:
            return self._results.get(timeout=STEP_SECONDS)
        except queue.Empty:
            return {"waiting": True}

    def cleanup(self) -> None:
        """Ask the workers to save their state and to stop, and wait until they have."""
        self._stop_request.stop(f"by the {self._sweep_kind}, after {self._reported} epochs")
        self._thread.join()

    def _start(self, config: dict[str, Any]) -> None:
        self._results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stop_request = StopRequest()
        self._reported, self._sweep_kind = int(config["reported"]), config["sweep_kind"]
        self._score = parse_score(config["metric"])
        self._experiment = from_stored(config["experiment"])
        record_start(config["sweep"], config["trial"])
        self._thread = threading.Thread(
            target=lambda: self._results.put(self._train(config)), daemon=True
        )
        self._thread.start()

    def _train(self, config: dict[str, Any]) -> dict[str, Any]:
        """Train to the end, and return the result of the last step."""
        try:
            outcome = fit(
                self._experiment,
                follow=self._follow,
                restartable=True,
                parent=config["sweep"],
                stop_request=self._stop_request,
                callbacks=[PlacementGroupRecorder(config["sweep"], config["trial"])],
            )
            result = self._evaluation(outcome["history"][-1])
            return {**result, "end": "finished", "tracked": outcome["tracked"], "done": True}
        except Stopped:
            return {"end": "interrupted", "done": True}
        # An object store, a server, credentials or nodes that may be available later.
        except (OSError, MissingNodesError) as error:
            return {"end": "held up", "reason": str(error), "done": True}
        except (ValueError, TrainingError) as error:
            return {"end": "failed", "reason": str(error), "done": True}
        except Exception as error:
            logger.exception("trial %s failed", config["trial"])
            return {"end": "failed", "reason": one_line(error), "done": True}

    def _follow(self, event: dict[str, Any]) -> None:
        """Pass on notes and new evaluations; `_train` returns the last one, after the run's end."""
        if event["kind"] == "note":
            self._results.put({"waiting": True, "note": event["text"]})
        for record in event.get("records", []):
            epochs = int(record["epoch"]) + 1
            is_new = self._reported < epochs < self._experiment.train.epochs
            if is_new and ACCURACY in record:
                self._reported = epochs
                self._results.put(self._evaluation(record))

    def _evaluation(self, record: dict[str, float]) -> dict[str, Any]:
        return {
            "score": self._score.of(record),
            "epochs": int(record["epoch"]) + 1,
            # Tune would flatten a dict, and join keys by the "/" that names of metrics contain.
            "metrics": json.dumps(record),
        }
