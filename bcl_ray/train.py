"""A training run on Ray, from its driver: begin, start the workers, follow them, finish."""

import contextlib
import csv
import io
import logging
import os
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
from bcl_ray.budget import Budget, budget, check_store, this_machine
from bcl_ray.config import Experiment
from bcl_ray.runs import Run
from bcl_ray.shards import Manifest, read_manifest
from bcl_ray.tracking import Tracker, tracking_uri
from bcl_ray.worker import SCORE, train_worker

Event = dict[str, Any]
Follow = Callable[[Event], None]

POLL = "0.2"  # seconds; Ray Train takes one report per poll, 2 s apart by default
MLFLOW_PATIENCE = 120.0  # seconds that a finished run waits for its tracking server


class TrainingError(RuntimeError):
    """A run that ended without a result; says why, and how to go on."""


def fit(experiment: Experiment, *, follow: Follow, resume: str | None = None) -> Event:
    """Train, evaluate and track a run; returns its last record, with its history.

    Args:
        experiment: what to train. On resume, only scale and tracking may differ from the run's.
        follow: called from a thread with every event of the run: `begin`, `start`, `step`,
            `epoch`, `end`.
        resume: name, path or URI of a run to continue.

    Raises:
        ValueError: the run cannot work, or the name is taken; before anything starts.
        TrainingError: the run began and failed.
    """
    manifest = read_manifest(experiment.data.path)
    remote = bool(os.environ.get("RAY_ADDRESS"))
    cpus, store = this_machine()
    wanted = budget(experiment, manifest, None if remote else cpus)
    if not remote:
        check_store(wanted, store)
    tracking_uri(experiment)  # refuses one that cannot work, before the name is taken
    run = _begin(experiment, manifest, resume)
    folder = runs.local_folder(run)
    with _logs(folder), Tracker(run, experiment, folder) as tracker:
        tracker.start(manifest, experiment.data.path)
        follow(_begin_event(run, experiment, manifest, wanted, tracker))
        with cluster():
            budget(experiment, manifest, ray.cluster_resources().get("CPU", 0.0))
            outcome = _run(run, experiment, manifest, tracker, follow)
        outcome["tracked"] = tracker.finish("FINISHED", MLFLOW_PATIENCE)
        outcome["problem"] = tracker.problem
    follow({"kind": "end", **outcome})
    return outcome


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


def _begin(experiment: Experiment, manifest: Manifest, resume: str | None) -> Run:
    place = experiment.tracking
    if resume is None:
        uri = runs.run_uri(place.run or runs.default_name(experiment), place.runs)
        return runs.create(uri, experiment, manifest.fingerprint)
    run, _ = runs.open_run(runs.run_uri(resume, place.runs))
    runs.check_resumable(run, experiment, manifest.fingerprint)
    return run


def _begin_event(
    run: Run, experiment: Experiment, manifest: Manifest, wanted: Budget, tracker: Tracker
) -> Event:
    return {
        "kind": "begin",
        "run": run.name,
        "folder": run.uri,
        "tracking_uri": tracker.uri,
        "budget": wanted,
        "experiment": experiment,
        "classes": len(manifest.class_names),
    }


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Ray: the cluster of RAY_ADDRESS, or one on this machine for as long as the run lasts."""
    remote = bool(os.environ.get("RAY_ADDRESS"))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {} if remote else {"include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    for name in ("ray.data", "ray.train"):  # they set themselves up to print
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _run(
    run: Run, experiment: Experiment, manifest: Manifest, tracker: Tracker, follow: Follow
) -> Event:
    """Run the workers to the end, and hand over what they report as it comes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
    mailbox = actor.remote()
    trainer = _trainer(run, experiment, manifest, mailbox)
    follower = threading.Thread(
        target=_follow, args=(mailbox, tracker, manifest, follow), name="follower", daemon=True
    )
    follower.start()
    try:
        result = trainer.fit()
        error = (result.return_value or {}).get("error")
    except ray.train.TrainingFailedError as failure:
        error = _cause(failure, run)
    finally:
        ray.get(mailbox.put.remote({"kind": "stop"}))
        follower.join()
    if error:
        raise TrainingError(f"{error}\ncontinue with: bcl-ray train --resume {run.name}")
    return _finished(run, result, tracker)


def _trainer(run: Run, experiment: Experiment, manifest: Manifest, mailbox: Any) -> Any:
    scale = experiment.scale
    use_gpu = scale.device == "cuda" or (
        scale.device == "auto" and ray.cluster_resources().get("GPU", 0) >= scale.workers
    )
    parent, _, name = run.uri.rstrip("/").rpartition("/")
    filesystem, path = storage.resolve(parent or ".")
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "experiment": experiment.to_yaml(),
            "manifest": manifest.model_dump_json(),
            "uid": run.uid,
            "mailbox": mailbox,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


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


def _follow(mailbox: Any, tracker: Tracker, manifest: Manifest, follow: Follow) -> None:
    """Pass on events until the driver says stop; what they bring is tracked on the way."""
    while True:
        for event in ray.get(mailbox.take.remote()):
            if event["kind"] == "stop":
                return
            if event["kind"] == "classes":
                tracker.text("class_accuracy.csv", _class_table(event, manifest))
                continue
            for record in event.get("records", ()):
                tracker.metrics(record, int(record["epoch"]))
            follow(event)


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
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"the workers failed: {lines[-1] if lines else failure} (all of it: {folder}/error.txt)"


def _finished(run: Run, result: Any, tracker: Tracker) -> Event:
    folder = runs.local_folder(run) / "final"
    shutil.rmtree(folder, ignore_errors=True)
    result.checkpoint.to_directory(folder)
    state = checkpoint.load(folder)
    tracker.model(folder)
    return {
        "run": run.name,
        "history": state.history,
        "class_counts": state.class_counts,
        "tracking_uri": tracker.uri,
    }
