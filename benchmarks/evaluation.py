"""An evaluated image against a trained one: `python -m benchmarks.evaluation`, three minutes.

The network and the views of `imagenet_lt`: a training step (three views, device half of the
views, loss, optimiser) and an evaluation (one view, counts, predictions), in turn, by one thread.
Images are noise in memory: decoding and copying are not part of it. The last line is the share of
an epoch that evaluating ImageNet-LT's test split takes by that.
"""

import time

import numpy as np
import torch

from bcl_ray.data.views.transfer import Batch
from bcl_ray.experiment.recipes import imagenet_lt
from bcl_ray.method.evaluation import evaluate
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from benchmarks import alternate, print_table

TRAIN_IMAGES, TEST_IMAGES, CLASSES = 115_846, 50_000, 1000  # of ImageNet-LT
BATCH, ROUNDS = 8, 5  # with 24 images an evaluation has as many views as a step


def batch(random: np.random.Generator, size: int, views: int) -> Batch:
    """A batch of noise."""
    return {
        "views": random.integers(0, 256, (size, views, 224, 224, 3), np.uint8),
        "labels": random.integers(0, CLASSES, size),
        "ids": np.arange(size),
    }


def main() -> None:
    torch.set_num_threads(1)
    random, experiment = np.random.default_rng(0), imagenet_lt()
    counts = np.linspace(1280, 5, CLASSES).astype(int)
    learner = Learner(experiment, counts, TRAIN_IMAGES // 256, torch.device("cpu"))
    trained, evaluated = [batch(random, BATCH, 3)], [batch(random, 3 * BATCH, 1)]
    begun = time.perf_counter()
    step, evaluation = alternate(
        lambda: list(train_epoch(learner, trained, epoch=0)),
        lambda: evaluate(
            learner.model,
            evaluated,
            experiment=experiment,
            class_counts=counts,
            rows=3 * BATCH,
            device=torch.device("cpu"),
        ),
        ROUNDS,
    )
    each = {"trained": step / BATCH, "evaluated": evaluation / (3 * BATCH)}
    rows = [[name, f"{seconds:.3f}"] for name, seconds in each.items()]
    print_table(f"{time.perf_counter() - begun:.0f} s", ["image", "s"], rows)
    ratio = each["evaluated"] / each["trained"]
    print(f"an evaluated image takes {ratio:.3f} of a trained one")
    print(f"{TEST_IMAGES:,} images: {100 * ratio * TEST_IMAGES / TRAIN_IMAGES:.1f} % of an epoch")


if __name__ == "__main__":
    main()
