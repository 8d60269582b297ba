"""CIFAR-100-LT, factor 100, 200 epochs, by the code that a worker runs: plan, learner, loop.

Images lie on the device, decoded once; a few epochs with views from the host, for the ratio.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar100_lt
from bcl_ray.method.evaluation import evaluate
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.method.precision import resolve_precision
from bcl_ray.training.resident_images import UnsupportedError
from benchmarks.gpu.feeds import FEEDS
from benchmarks.gpu.images import prepared
from benchmarks.gpu.machine import device_of, wait
from benchmarks.gpu.report import FAILED, LATE, OK, Row
from benchmarks.gpu.supervise import Settings

GOAL = 180.0  # seconds of all epochs, evaluations included
EVALUATIONS = 10  # of a run
HOST_EPOCHS = 4  # with views from the host, the first of which is not measured
GROUPS = ("all", "many", "medium", "few")
TINY = [
    "train.epochs=3",
    "model.backbone=resnet8",
    "model.width=4",
    "model.hidden_dim=16",
    "model.feature_dim=8",
    "optim.global_batch_size=16",
    "optim.warmup_epochs=0",
]
SEEDS = {True: 2, False: 100}  # at most, in the smoke test and on a GPU


@dataclass
class Trained:
    """What a run came to."""

    seconds: float
    epochs: list[float]
    """Seconds of each epoch's training."""
    accuracy: dict[str, float]
    """Of the last evaluation; empty where there was none."""
    scores: dict[int, float]
    """Accuracy of all classes at each evaluation, by epochs done."""
    losses: list[list[float]]
    """Means of TERMS in each epoch, after those of the first step."""


def run(settings: Settings) -> Iterator[Row]:
    shards, manifest, mark = prepared(settings)
    epochs = 3 if settings.smoke else 200
    options = [f"data.path={shards}", f"train.epochs={epochs}", "scale.workers=1"]
    options.append(f"train.eval_every={max(1, epochs // EVALUATIONS)}")
    experiment = with_overrides(cifar100_lt(), [*options, *(TINY if settings.smoke else [])])
    kind, taken = "device", 0.0
    for seed in range(SEEDS[settings.smoke]):
        if seed and settings.left < 1.1 * taken:
            break
        seeded = with_overrides(experiment, [f"train.seed={seed}"])
        try:
            trained = train(kind, seeded, manifest, settings)
        except UnsupportedError as error:
            yield Row("", "images on the device", outcome=FAILED, note=str(error))
            kind = "host"
            trained = train(kind, seeded, manifest, settings)
        yield from rows(f"seed {seed}, images on the {kind}{mark}", trained, seeded, settings)
        taken = trained.seconds
        if seed == 0:
            yield from host_views(seeded, manifest, trained, settings)


def train(
    kind: str, experiment: Experiment, manifest: Manifest, settings: Settings, epochs: int = 10**9
) -> Trained:
    """Train from the first step on; so many epochs at most, and none that the time is up for."""
    begun, device = time.perf_counter(), device_of(settings)
    counts = np.array(manifest.splits["train"].class_counts)
    feed = FEEDS[kind](experiment, manifest, device)
    learner = Learner(experiment, counts, epoch_plan(experiment, manifest, 0).steps, device)
    taken: list[float] = []
    accuracy: dict[str, float] = {}
    scores: dict[int, float] = {}
    losses: list[list[float]] = []
    every, last = experiment.train.eval_every, experiment.train.epochs
    with contextlib.closing(feed.training(learner.sender, 0)) as stream:
        for epoch, batches in itertools.islice(stream, epochs):
            started = time.perf_counter()
            learner.sums.zero_()
            steps = 0
            for step in train_epoch(learner, batches, epoch=epoch):
                steps += 1
                if not losses:
                    losses.append(step.terms.tolist())
            wait(device)
            taken.append(time.perf_counter() - started)
            losses.append((learner.sums / steps).tolist())
            out_of_time = settings.left < 0
            if (epoch + 1) % every == 0 or epoch + 1 == last or out_of_time:
                accuracy = accuracies(learner, feed, manifest, experiment, counts)
                scores[epoch + 1] = accuracy["all"]
                print(epoch + 1, f"{time.perf_counter() - begun:.1f} s", accuracy, flush=True)
            if out_of_time:
                break
    return Trained(time.perf_counter() - begun, taken, accuracy, scores, losses)


def accuracies(
    learner: Learner, feed: Any, manifest: Manifest, experiment: Experiment, counts: Any
) -> dict[str, float]:
    """Per cent, of all classes and of those with many, medium and few training images."""
    found = evaluate(
        learner.evaluation_model,
        feed.evaluation(),
        experiment=experiment,
        class_counts=counts,
        rows=manifest.splits["test"].rows,
        device=learner.device,
    )
    named = {group: found.metrics.get(f"accuracy/{group}") for group in GROUPS}
    return {group: value for group, value in named.items() if value is not None}


def rows(what: str, trained: Trained, experiment: Experiment, settings: Settings) -> Iterator[Row]:
    """The time of a run, and its accuracy."""
    epochs, wanted = len(trained.epochs), experiment.train.epochs
    ended = epochs == wanted
    shown = "  ".join(f"{group} {value:.1f}" for group, value in trained.accuracy.items())
    precision = resolve_precision(experiment.train.precision, device_of(settings))
    yield Row(
        "",
        f"{epochs} epochs, {what}",
        trained.seconds,
        "s",
        GOAL,
        "goal",
        GOAL / trained.seconds,
        settings.goal(1.0) if ended else None,
        outcome=OK if ended else LATE,
        note=f"accuracy, %: {shown}" + ("" if ended else f"; ended before epoch {wanted}"),
        detail={
            "accuracy": trained.accuracy,
            "epochs": trained.epochs,
            "precision": precision,
            "experiment": experiment.model_dump(mode="json"),
        },
    )


def host_views(
    experiment: Experiment, manifest: Manifest, resident: Trained, settings: Settings
) -> Iterator[Row]:
    """Epochs whose views a pool of processes makes, against those of images on the device."""
    epochs = 2 if settings.smoke else HOST_EPOCHS
    streamed = train("host", experiment, manifest, settings, epochs)
    if len(streamed.epochs) < epochs:
        yield Row("", "views from the host", outcome=LATE, note="no time left")
        return
    mine, other = (float(np.median(run.epochs[1:])) for run in (resident, streamed))
    yield Row("", "an epoch", mine, "s", other, "views from the host", other / mine)
