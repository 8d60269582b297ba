"""A training run on Ray, from its driver: begin, start the workers, follow them, finish."""

import contextlib
import csv
import io
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray import checkpoint, runs, storage
from bcl_ray.budget import Budget, budget, check_store, preflight
from bcl_ray.cluster import Resources, check_places, connected, one_line, uses_gpus
from bcl_ray.config import Experiment
from bcl_ray.runs import Run
from bcl_ray.shards import Manifest, read_manifest
from bcl_ray.tracking import Tracker, tracking_uri
from bcl_ray.worker import SCORE, train_worker

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Follow = Callable[[Event], None]

COLLECTIVE_PATIENCE = 600  # seconds that a worker waits for another in a collective
MLFLOW_PATIENCE = 120.0  # seconds that a finished run waits for its tracking server


class TrainingError(RuntimeError):
    """A run that ended without a result; says why, and how to go on."""


def fit(experiment: Experiment, *, follow: Follow, resume: str | None = None) -> Event:
    """Train, evaluate and track a run; returns its name and its history.

    Args:
        experiment: what to train. On resume, only data.path, scale and tracking may differ.
        follow: called from a thread with every event of the run: `begin`, `start`, `step`,
            `epoch`, `end`.
        resume: path or URI of the folder of a run to continue.

    Raises:
        ValueError: the run cannot work, or the name is taken; before anything is written.
        TrainingError: the run began and failed.
    """
    experiment = runs.located(experiment)
    manifest = read_manifest(experiment.data.path)
    wanted, _ = preflight(experiment, manifest)
    tracking_uri(experiment)
    uri = resume or runs.run_uri(
        experiment.tracking.run or runs.default_name(experiment), experiment.tracking.runs
    )
    if resume is None:
        runs.check_free(uri, experiment)
    else:
        runs.check_resumable(runs.open_run(uri)[0], experiment, manifest.fingerprint)
    with connected() as resources:
        _check(experiment, manifest, resources)
        new = resume is None
        run = runs.create(uri, experiment, manifest.fingerprint) if new else runs.open_run(uri)[0]
        folder = runs.local_folder(run)
        with runs.held(folder), _logs(folder), Tracker(run, experiment, folder) as tracker:
            tracker.start(manifest, experiment.data.path)
            follow(_begin_event(run, experiment, manifest, wanted, tracker))
            mailbox = _mailbox()
            trainer = _trainer(run, experiment, manifest, resources, mailbox)
            outcome = _run(run, trainer, Follower(mailbox, tracker, manifest, follow))
            outcome["tracked"] = tracker.finish("FINISHED", MLFLOW_PATIENCE)
            outcome["problem"] = tracker.problem
    follow({"kind": "end", **outcome})
    return outcome


def _check(experiment: Experiment, manifest: Manifest, resources: Resources) -> None:
    """What could only be checked once the cluster is known."""
    check_store(budget(experiment, manifest, resources.cpus), resources.store_bytes)
    check_places(experiment, resources)
    uses_gpus(experiment, resources)


@contextlib.contextmanager
def _logs(folder: Path) -> Iterator[None]:
    """Send what libraries log in this process to the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "driver.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _begin_event(
    run: Run, experiment: Experiment, manifest: Manifest, wanted: Budget, tracker: Tracker
) -> Event:
    return {
        "kind": "begin",
        "run": run.name,
        "folder": runs.shown(run.uri),
        "tracking_uri": tracker.uri,
        "budget": wanted,
        "experiment": experiment,
        "classes": len(manifest.class_names),
    }


def _run(run: Run, trainer: Any, follower: "Follower") -> Event:
    """Run the workers to the end, and hand over what they report as it comes."""
    follower.start()
    try:
        result = _interruptible(trainer.fit)
        error = (result.return_value or {}).get("error")
        advice = ""
    except ray.train.TrainingFailedError as failure:
        error = _cause(failure, run)
        advice = f"\ncontinue with: bcl-ray train --resume {runs.reference(run)}"
    except KeyboardInterrupt:
        resume = f"bcl-ray train --resume {runs.reference(run)}"
        raise KeyboardInterrupt(f"stopped; go on with: {resume}") from None
    finally:
        follower.stop()
    if error:
        raise TrainingError(f"{error}{advice}")
    return _finished(run, result, follower)


def _interruptible(function: Callable[[], Any]) -> Any:
    """Call a function in a thread, so that Ctrl-C reaches us: Ray Train would exit with 0."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def _trainer(
    run: Run, experiment: Experiment, manifest: Manifest, resources: Resources, mailbox: Any
) -> Any:
    scale = experiment.scale
    use_gpu = uses_gpus(experiment, resources)
    filesystem, path = storage.resolve(run.uri)
    parent, _, name = path.rstrip("/").rpartition("/")
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "experiment": experiment.to_yaml(),
            "manifest": manifest.model_dump_json(),
            "uid": run.uid,
            "mailbox": mailbox,
        },
        torch_config=ray.train.torch.TorchConfig(timeout_s=COLLECTIVE_PATIENCE),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent or "/",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _mailbox() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
    return actor.remote()


class Mailbox:
    """Carries a worker's events to the driver; in memory, on the driver's node."""

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415  the queue belongs to the actor's loop

        self._events: Any = asyncio.Queue()

    async def put(self, event: Event) -> None:
        """Leave an event."""
        await self._events.put(event)

    async def take(self) -> list[Event]:
        """All events that wait; at least one."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events


class Follower(threading.Thread):
    """Passes on what workers tell, until it is stopped; epochs are tracked on the way.

    Neither a terminal that is gone nor a full disk may stop training: the first failure is
    kept in `failure`.
    """

    def __init__(self, mailbox: Any, tracker: Tracker, manifest: Manifest, follow: Follow) -> None:
        super().__init__(name="follower", daemon=True)
        self.mailbox, self.tracker, self.manifest = mailbox, tracker, manifest
        self.follow: Follow = follow
        self.tracked: set[int] = set()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Take events until `stop`."""
        while True:
            for event in ray.get(self.mailbox.take.remote()):
                if event["kind"] == "stop":
                    return
                for act in (self._track, self._show):
                    try:
                        act(event)
                    except Exception as error:
                        logger.exception("%s failed", event["kind"])
                        self.failure = self.failure or error

    def stop(self) -> None:
        """Wait until all that was told before has been passed on."""
        ray.get(self.mailbox.put.remote({"kind": "stop"}))
        self.join()

    def track(self, records: list[dict[str, float]]) -> None:
        """Track the records of epochs that have not been tracked."""
        for record in records:
            epoch = int(record["epoch"])
            if epoch not in self.tracked:
                self.tracker.metrics(record, epoch)
                self.tracked.add(epoch)

    def _track(self, event: Event) -> None:
        self.track(event.get("records", []))
        if event["kind"] == "classes":
            self.tracker.text("class_accuracy.csv", _class_table(event, self.manifest))

    def _show(self, event: Event) -> None:
        if event["kind"] != "classes" and not self.failure:
            self.follow(event)


def _class_table(event: Event, manifest: Manifest) -> str:
    """CSV: each class, its training images, and its accuracy in per cent."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["class", "training_images", "accuracy"])
    rows = zip(manifest.class_names, event["counts"], event["accuracy"], strict=True)
    writer.writerows(rows)
    return table.getvalue()


def _cause(failure: Exception, run: Run) -> str:
    """The failure in one line; all of it goes to a file."""
    folder = runs.local_folder(run)
    (folder / "error.txt").write_text(str(failure))
    causes = list(getattr(failure, "worker_failures", {}).values()) or [failure]
    return f"the workers failed: {one_line(causes[0])} (all of it: {folder}/error.txt)"


def _finished(run: Run, result: Any, follower: Follower) -> Event:
    folder = runs.local_folder(run) / "final"
    shutil.rmtree(folder, ignore_errors=True)
    result.checkpoint.to_directory(folder)
    state = checkpoint.load(folder)
    follower.track(state.history)  # what a worker told may come after the end of training
    follower.tracker.model(folder)
    if follower.failure is not None:
        raise TrainingError(
            f"training is complete, but following it failed: {one_line(follower.failure)}"
            f"\nsee its results with: bcl-ray evaluate {runs.reference(run)}"
        )
    return {"run": run.name, "reference": runs.reference(run), "history": state.history}
