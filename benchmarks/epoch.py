"""A whole epoch: `python -m benchmarks.epoch`, about three minutes on two cores.

Training on CIFAR-10-LT through Ray Train and Ray Data, against a plain loop of the same
mathematics with torch's DataLoader over images that already lie in memory: one process that
trains on one core, one that loads on the other. Goal: 1.0. The images are synthetic, of CIFAR's
size and class counts, a sixth of them by default; the network is resnet8, which computes
less per image than the recipe's resnet32 and so makes the stream work harder. A third run has its
images on the device (data.residency=device), which is the one core that trains.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views import train_views
from bcl_ray.display.terminal import quiet
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.training.driver import fit
from bcl_ray.training.tasks import Batch
from benchmarks import print_table
from benchmarks.images import cifar_shards

EPOCHS = 3  # of each turn, the first of which is not measured


class GlobalBatches(Dataset[Batch]):
    """Item (epoch, step) is a global batch of the plan, from a table in memory."""

    def __init__(self, experiment: Experiment, manifest: Manifest) -> None:
        files = [shard.file for shard in manifest.splits["train"].shards]
        table = pa.concat_tables([pq.read_table(Path(experiment.data.path) / f) for f in files])
        self.images, self.ids = table["image"].to_pylist(), table["id"].to_numpy()
        self.labels = table["label"].to_numpy().astype(np.int64)
        self.experiment = experiment
        self.plans = [epoch_plan(experiment, manifest, epoch) for epoch in range(EPOCHS)]

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, step = place
        rows = self.plans[epoch].rows(step)
        views = train_views(
            [self.images[row] for row in rows],
            self.ids[rows],
            self.experiment.views,
            num_contrastive=self.experiment.num_contrastive,
            seed=self.experiment.train.seed,
            epoch=epoch,
        )
        return {"views": views, "labels": self.labels[rows], "ids": self.ids[rows]}


def plain(experiment: Experiment, manifest: Manifest) -> list[float]:
    """Seconds of each epoch of the plain loop but the first."""
    torch.set_num_threads(1)
    batches = GlobalBatches(experiment, manifest)
    steps = batches.plans[0].steps
    counts = np.array(manifest.splits["train"].class_counts)
    learner = Learner(experiment, counts, steps, torch.device("cpu"))
    places = [(epoch, step) for epoch in range(EPOCHS) for step in range(steps)]
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=places,
        num_workers=1,
        prefetch_factor=4,
        collate_fn=lambda batch: batch,
    )
    stream, seconds = iter(loader), []
    for epoch in range(EPOCHS):
        begun = time.perf_counter()
        for _ in train_epoch(learner, (next(stream) for _ in range(steps)), epoch=epoch):
            pass
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def through_ray(experiment: Experiment, name: str) -> tuple[list[float], list[float]]:
    """Seconds of each epoch of a whole run but the first, and the share of waiting for data."""
    residency = name.partition("-")[0]
    options = [f"tracking.run={name}", f"data.residency={residency}"]
    outcome = fit(with_overrides(experiment, options), follow=lambda _: None)
    records = outcome["history"][1:]
    return [r["time/epoch"] for r in records], [r["time/data_share"] for r in records]


@contextlib.contextmanager
def shards(images: int) -> Iterator[tuple[Experiment, Manifest]]:
    """A data set in a temporary folder, and an experiment on it."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = cifar_shards(Path(folder), images)
        options = {
            "data.path": f"{folder}/shards",
            "tracking.runs": f"{folder}/runs",
            "model.backbone": "resnet8",
            "train.epochs": EPOCHS,
            "optim.warmup_epochs": 1,
            "train.eval_every": EPOCHS,
        }
        pairs = [f"{name}={value}" for name, value in options.items()]
        yield with_overrides(cifar10_lt(), pairs), manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2100, help="training images")
    images = parser.parse_args().images
    os.environ["MLFLOW_TRACKING_URI"] = ""
    quiet()
    ours: dict[str, tuple[list[float], list[float]]] = {"stream": ([], []), "device": ([], [])}
    others: list[float] = []
    with shards(images) as (experiment, manifest):
        for turn in range(2):
            others += plain(experiment, manifest)
            for residency, found in ours.items():
                for values, more in zip(
                    found, through_ray(experiment, f"{residency}-{turn}"), strict=True
                ):
                    values.extend(more)
        rows = manifest.splits["train"].rows
    medians = {name: statistics.median(seconds) for name, (seconds, _) in ours.items()}
    first, trained = statistics.median(others), images_per_epoch(experiment, manifest)
    table = [["plain loop, DataLoader", f"{first:.2f}", f"{trained / first:,.0f}", "-"]]
    for label, name in (("Ray Train, Ray Data", "stream"), ("Ray Train, resident", "device")):
        cells = [f"{medians[name]:.2f}", f"{trained / medians[name]:,.0f}"]
        table.append([label, *cells, f"{max(ours[name][1]):.1f}"])
    columns = ["training", "s per epoch", "images/s", "waiting for data, %"]
    print_table(f"an epoch of {rows:,} images, two cores", columns, table)
    print(f"ratio of the plain loop's seconds to ours: {first / medians['stream']:.2f} (goal 1.0)")
    print(f"ratio of the stream's seconds to resident: {medians['stream'] / medians['device']:.2f}")


def images_per_epoch(experiment: Experiment, manifest: Manifest) -> int:
    """Images that an epoch trains on."""
    return epoch_plan(experiment, manifest, 0).steps * experiment.optim.global_batch_size


if __name__ == "__main__":
    main()
