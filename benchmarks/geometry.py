"""What geometry costs: `python -m benchmarks.geometry`, about two minutes on two cores.

Steps of CIFAR-10-LT's size (12,406 training images in batches of 256, three views), and beside
them, in turn, all that geometry adds to an evaluated epoch: classifying the training split's
sample, projecting both samples, and the measures of embeddings and features of both. An epoch is
48 such steps. Images are synthetic and lie in memory, one thread computes. The network is
resnet8, the smallest, so that geometry weighs more than with the recipe's resnet32.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bcl_ray.data.views.transfer import Batch
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt
from bcl_ray.method.evaluation import collect_sample, geometry_metrics
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.method.sample import Sample
from bcl_ray.training.evaluator import EVALUATED_IMAGES, Evaluator
from benchmarks import print_table
from benchmarks.images import cifar_shards

IMAGES, STEPS = 12_406, 48  # of an epoch
MEASURED, TURNS = 3, 3  # steps of a turn, and turns


def batch(random: np.random.Generator, size: int, views: int) -> Batch:
    """A batch of noise."""
    return {
        "views": random.integers(0, 256, (size, views, 32, 32, 3), np.uint8),
        "labels": random.integers(0, 10, size),
        "ids": np.arange(size),
    }


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def main() -> None:
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        manifest = cifar_shards(Path(folder), IMAGES)
        options = [f"data.path={folder}/shards", "model.backbone=resnet8"]
        experiment = with_overrides(cifar10_lt(), options)
        counts = np.array(manifest.splits["train"].class_counts)
        device = torch.device("cpu")
        learner = Learner(experiment, counts, STEPS, device)
        evaluator = Evaluator(experiment, manifest, counts, device)
        first = seconds(lambda: evaluator._training_sample)
    model, sample = learner.model, evaluator._training_sample
    steps = [batch(random, 256, 3) for _ in range(MEASURED)]
    # The test split's sample passes by anyway: its embeddings cost nothing more.
    tested = collect_sample(
        model,
        [batch(random, 256, 1) for _ in range(EVALUATED_IMAGES // 256)],
        experiment=experiment,
        device=device,
    )

    def project() -> Sample:
        model.eval()
        with torch.no_grad():
            return tested._replace(features=model.project(tested.embeddings))

    parts: dict[str, Callable[[], object]] = {
        "training steps": lambda: list(train_epoch(learner, steps, epoch=0)),
        "embedding the training sample": lambda: collect_sample(
            model, sample, experiment=experiment, device=device
        ),
        "projecting the test sample": project,
        "measures of the training sample": lambda: geometry_metrics(model, trained, counts),
        "measures of the test sample": lambda: geometry_metrics(model, tested, counts),
    }
    trained = collect_sample(model, sample, experiment=experiment, device=device)
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(TURNS):
        for name, part in parts.items():
            taken[name].append(seconds(part))
    median = {name: statistics.median(times) for name, times in taken.items()}
    epoch = median.pop("training steps") / MEASURED * STEPS
    rows = [[name, f"{time:.2f}", f"{100 * time / epoch:.1f}"] for name, time in median.items()]
    rows.append(["reading and decoding the training sample, once a run", f"{first:.2f}", "-"])
    rows.append(["an epoch's steps", f"{epoch:.1f}", "100"])
    images = f"{len(trained.ids):,} training and {len(tested.ids):,} test images"
    print_table(f"geometry of {images}", ["part", "s", "% of an epoch"], rows)
    print(f"geometry costs {100 * sum(median.values()) / epoch:.1f} % of an evaluated epoch")


if __name__ == "__main__":
    main()
