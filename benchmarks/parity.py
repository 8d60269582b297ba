"""Does a whole training learn as well as a plain PyTorch loop of the published recipe?

`python -m benchmarks.parity SHARDS`: the plain loop, the same loop with one of its parts replaced
by this project's, and this project's own training, with several seeds each: the loss of the last
epoch and the accuracy after it, with intervals. What has been trained is kept in --out, and is not
trained again. SHARDS are of CIFAR-100-LT or another set of small images.
"""

import argparse
import functools
import json
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar100_lt
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.training.residency import ResidentFeed
from benchmarks import print_table
from benchmarks.gpu.training import GROUPS, accuracies
from benchmarks.plain import PARTS, PlainLoop

PLAIN, ALL, PROJECT = "plain", "all", "project"
ROWS = {PLAIN: (), **{part: (part,) for part in PARTS}, ALL: tuple(PARTS)}
RECIPE = (
    "model.backbone=resnet8",
    "optim.warmup_epochs=1",
    "scale.workers=1",
    "data.residency=device",
)
Result = dict[str, Any]


def main() -> None:
    """The table; each training is one line of --out as soon as it has ended."""
    options = parsed()
    experiment = with_overrides(
        cifar100_lt(),
        [
            *RECIPE,
            f"data.path={options.shards}",
            f"train.epochs={options.epochs}",
            f"optim.milestones=[{','.join(map(str, options.milestones))}]",
            *options.overrides,
        ],
    )
    manifest = read_manifest(options.shards)
    file = Path(options.out)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(found["row"], found["seed"]) for found in done}
    wanted = [
        (row, seed)
        for seed in range(options.seeds)
        for row in options.rows or [*ROWS, PROJECT]
        if (row, seed) not in known
    ]
    work = functools.partial(trained, experiment, manifest, evaluated=options.evaluate)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for result in pool.imap_unordered(work, wanted):
            done.append(result)
            with file.open("a") as out:
                out.write(json.dumps(result) + "\n")
            print(result, flush=True)
    print_table(
        f"after {options.epochs} epochs",
        ["row", "seeds", "loss", "against plain", *GROUPS],
        table(done),
    )


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="folder that `bcl-ray shard` wrote")
    parser.add_argument("overrides", nargs="*", help="options of the recipe: optim.lr=0.1")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--milestones", type=int, nargs="*", default=[1000])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluate", action="store_true", help="accuracy after the last epoch")
    parser.add_argument("--rows", nargs="*", choices=[*ROWS, PROJECT])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", default="parity.jsonl")
    return parser.parse_intermixed_args()


def trained(
    experiment: Experiment, manifest: Manifest, job: tuple[str, int], *, evaluated: bool
) -> Result:
    """Train one row with one seed."""
    row, seed = job
    torch.set_num_threads(1)
    seeded = with_overrides(experiment, [f"train.seed={seed}"])
    if row == PROJECT:
        losses, accuracy = own_training(seeded, manifest, evaluated)
    else:
        losses, accuracy = PlainLoop(seeded, manifest, frozenset(ROWS[row])).run(evaluated)
    return {"row": row, "seed": seed, "losses": losses, "accuracy": accuracy}


def own_training(
    experiment: Experiment, manifest: Manifest, evaluated: bool
) -> tuple[list[float], dict[str, float]]:
    """Loss of each epoch, and accuracy in per cent after the last, of what a worker runs."""
    counts = np.array(manifest.splits["train"].class_counts)
    device = torch.device("cpu")
    feed = ResidentFeed(experiment, manifest, device)
    learner = Learner(experiment, counts, epoch_plan(experiment, manifest, 0).steps, device)
    losses = []
    for epoch, batches in feed.training(learner.sender, 0):
        terms = [step.terms[0].item() for step in train_epoch(learner, batches, epoch=epoch)]
        losses.append(float(np.mean(terms)))
    return losses, accuracies(learner, feed, manifest, experiment, counts) if evaluated else {}


def table(results: Sequence[Result]) -> list[list[str]]:
    """A row's mean over seeds, and the half width of its 95 % interval."""
    lines = []
    base = [result["losses"][-1] for result in results if result["row"] == PLAIN]
    for row in [*ROWS, PROJECT]:
        of_row = [result for result in results if result["row"] == row]
        if len(of_row) < 2:
            continue
        losses = [result["losses"][-1] for result in of_row]
        less = shown(
            np.mean(losses) - np.mean(base), math.hypot(half_width(losses), half_width(base))
        )
        groups = [
            [result["accuracy"].get(group, math.nan) for result in of_row] for group in GROUPS
        ]
        scores = [shown(np.mean(values), half_width(values), 1) for values in groups]
        lines.append(
            [row, str(len(of_row)), shown(np.mean(losses), half_width(losses)), less, *scores]
        )
    return lines


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean (Student's t)."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def shown(mean: Any, width: Any, digits: int = 2) -> str:
    """A mean and its interval."""
    return f"{mean:.{digits}f} ± {width:.{digits}f}"


if __name__ == "__main__":
    main()
