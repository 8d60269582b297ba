"""`bcl-ray plan` against runs: `python -m benchmarks.rates`, some minutes on two cores.

The parts are measured alone, on one core: a training step, and decoding with crops. By the model
(`bcl_ray.runs.forecast`), a run is as fast as the slower part. Then the same is trained through Ray
Train and Ray Data. All rates are images a second of CPU time of the process that trains, or of
those that make views, so that a busy machine matters less; it is what a quiet one would reach.
Goal: within 25 %, in every case.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
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

EPOCHS = 6  # of a run; not measured are the first, and two for which views are made ahead
STEPS = 6
JPEGS = (
    "model.backbone=resnet8 model.width=4 loss.kind=ce optim.global_batch_size=64 "
    "views.classification.crop=resized views.classification.policy=none "
    "views.classification.cutout=0"
)
CASES = {  # images, how many, overrides
    "resnet8, 3 views": (cifar_shards, 3100, "model.backbone=resnet8"),
    "resnet8, 1 view": (cifar_shards, 3100, "model.backbone=resnet8 loss.kind=ce"),
    "resnet20, 3 views": (cifar_shards, 1600, "model.backbone=resnet20"),
    "resnet8, batches of 64": (
        cifar_shards,
        1600,
        "model.backbone=resnet8 optim.global_batch_size=64",
    ),
    "resnet8 of width 4, 1 view of JPEGs": (jpeg_shards, 1600, JPEGS),
}
# Beginnings of their names; a process that makes views is idle between two tasks.
PROCESSES = {"workers": ("ray::RayTrainWorker",), "data": ("ray::Map", "ray::IDLE")}


def parts(experiment: Experiment, manifest: Manifest) -> dict[str, float]:
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
    stepping = statistics.median(np.diff(stamps).tolist())
    return {"workers": size / stepping, "data": steps * size / making}


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of this process's descendants, by PROCESSES."""
    seconds = dict.fromkeys(PROCESSES, 0.0)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command, times = " ".join(process.cmdline()), process.cpu_times()
            for part, beginnings in PROCESSES.items():
                seconds[part] += (times.user + times.system) * command.startswith(beginnings)
    return seconds


def through_ray(experiment: Experiment, images: int) -> dict[str, float]:
    """Images a CPU second of each part of a run, whose epochs have so many images."""
    found: list[dict[str, float]] = []

    def follow(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            found.append(cpu_seconds())

    fit(experiment, follow=follow)
    first, last = found[0], found[-3]
    total = images * (len(found) - 3)
    return {part: total / (last[part] - first[part]) for part in PROCESSES}


def measure(case: str) -> list[object]:
    """A row of the table: the limit, its rate alone, that of the run, and their ratio."""
    make, count, overrides = CASES[case]
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
        alone = parts(experiment, manifest)
        steps = epoch_plan(experiment, manifest, 0).steps
        run = through_ray(experiment, steps * experiment.optim.global_batch_size)
    limit = min(alone, key=lambda part: alone[part])
    ratio = alone[limit] / run[limit]
    return [case, limit, f"{alone[limit]:,.0f}", f"{run[limit]:,.0f}", f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    os.environ["MLFLOW_TRACKING_URI"] = ""
    quiet()
    rows = []
    for case in parser.parse_args().only:
        rows.append(measure(case))
        print(*rows[-1], sep=", ", flush=True)
    columns = ["run", "limit", "alone, images/s", "in the run", "ratio"]
    print_table("images a second of CPU time", columns, rows)
    worst = max((float(str(row[-1])) for row in rows), key=lambda ratio: abs(ratio - 1))
    print(
        f"ratio of the model's images a second to the run's, the worst: {worst:.2f} (0.75 to 1.25)"
    )


if __name__ == "__main__":
    main()
