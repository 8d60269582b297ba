"""The model of `bcl-ray plan` against runs: `python -m benchmarks.rates`, some minutes on two cores.

First the parts are measured alone, on one core: a training step, and decoding and cropping. The
model makes images a second of them (`bcl_ray.runs.forecast`). Then whole runs are trained through Ray
Train and Ray Data. All rates are images a second of CPU time, of the process that trains or of those
that make views, so that a busy machine does not matter: a worker that never waits has that rate.
"""

import collections
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.display.terminal import quiet
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.training.driver import fit
from benchmarks import print_table
from benchmarks.epoch import GlobalBatches
from benchmarks.images import cifar_shards, jpeg_shards

EPOCHS = 3  # of a run; the first is not measured
STEPS = 6
JPEGS = "views.image_size=224 views.eval_resize=256 views.classification.crop=resized"
CASES = {  # images, how many, overrides
    "resnet8, 32 px": (cifar_shards, 3100, "model.backbone=resnet8"),
    "resnet8, 32 px, one view": (cifar_shards, 3100, "model.backbone=resnet8 loss.kind=ce"),
    "resnet20, 32 px": (cifar_shards, 1600, "model.backbone=resnet20"),
    "resnet8, 32 px, batches of 64": (
        cifar_shards,
        1600,
        "model.backbone=resnet8 optim.global_batch_size=64",
    ),
    "resnet8 of width 4, JPEGs, 224 px, one view": (
        jpeg_shards,
        600,
        f"model.backbone=resnet8 model.width=4 loss.kind=ce optim.global_batch_size=64 {JPEGS}",
    ),
}


def parts(experiment: Experiment, manifest: Manifest) -> tuple[float, float]:
    """Images a CPU second of a training step, and of making views, each alone on one core."""
    torch.set_num_threads(1)
    batches = GlobalBatches(experiment, manifest)
    steps = min(STEPS, batches.plans[0].steps)
    counts = np.array(manifest.splits["train"].class_counts)
    learner = Learner(experiment, counts, batches.plans[0].steps, torch.device("cpu"))
    begun = time.process_time()
    made = [batches[0, step] for step in range(steps)]
    making = time.process_time() - begun
    stamps = [time.process_time() for _ in train_epoch(learner, iter(made), epoch=0)]
    size = experiment.optim.global_batch_size
    return size / statistics.median(np.diff(stamps)), steps * size / making


def cpu_seconds() -> collections.Counter[str]:
    """CPU seconds so far of this process's descendants, by the names that Ray gives them."""
    seconds: collections.Counter[str] = collections.Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            times, name = process.cpu_times(), " ".join(process.cmdline())[:60]
        except psutil.Error:
            continue
        seconds[name] += times.user + times.system
    return seconds


def through_ray(experiment: Experiment, name: str) -> list[collections.Counter[str]]:
    """CPU seconds of all processes at the end of each epoch of a run."""
    found = []

    def follow(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            found.append(cpu_seconds())

    fit(with_overrides(experiment, [f"tracking.run={name}"]), follow=follow)
    return found


def main() -> None:
    os.environ["MLFLOW_TRACKING_URI"] = ""
    quiet()
    for name, (make, count, overrides) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            manifest = make(Path(folder), count)
            options = [
                f"data.path={folder}/shards",
                f"tracking.runs={folder}/runs",
                "tracking.report=false",
                f"train.epochs={EPOCHS}",
                "optim.warmup_epochs=1",
                f"train.eval_every={EPOCHS}",
                *overrides.split(),
            ]
            experiment = with_overrides(cifar10_lt(), options)
            print(name, "parts", parts(experiment, manifest), flush=True)
            found = through_ray(experiment, "mine")
            images = epoch_plan(experiment, manifest, 0).steps * experiment.optim.global_batch_size
            print(name, images, *(found[-1] - found[0]).most_common(9), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
