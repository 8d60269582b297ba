"""Labelling: `python -m benchmarks.predict`, about two minutes on two cores.

Images per second of `bcl-ray predict`, from its begin on a running Ray to the last table, against
the same functions (read, decode, label) in a plain loop of one process, which writes nothing and
has as many threads for the network. Beside it, the most memory that the driver takes, and with
four times the images. An untrained resnet32 on 32 x 32 PNGs: the smaller the network, the more
Ray weighs.
"""

import logging
import multiprocessing
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from bcl_ray import checkpoint, runs, storage
from bcl_ray.inputs import read_batch, shards_of
from bcl_ray.labeller import Labeller
from bcl_ray.learner import Learner
from bcl_ray.models import open_model
from bcl_ray.outputs import Options
from bcl_ray.parse import with_overrides
from bcl_ray.predict import predict
from bcl_ray.recipes import cifar10_lt
from bcl_ray.shards import Manifest, read_manifest
from benchmarks import alternate, print_table
from benchmarks.images import cifar_shards

CPUS, IMAGES, ROUNDS = 2, 12_406, 3


def untrained(folder: Path, manifest: Manifest) -> None:
    """A run whose best checkpoint is of its first step."""
    experiment = with_overrides(cifar10_lt(), [f"data.path={folder}/shards"])
    counts = np.array(manifest.splits["train"].class_counts)
    run = runs.create(f"{folder}/runs/untrained", experiment, manifest.fingerprint)
    state = Learner(experiment, counts, 1, torch.device("cpu")).state(
        history=[],
        fingerprint=manifest.fingerprint,
        class_names=list(manifest.class_names),
        class_counts=counts.tolist(),
        uid=run.uid,
    )
    checkpoint.save(state, storage.join(run.uri, f"{runs.BEST}{0:08d}"))


def plain(folder: Path, options: Options) -> None:
    """The same images through the same functions, one batch after another."""
    model = open_model("untrained", f"{folder}/runs")
    labeller = Labeller(model.uri, model.sha256, top=options.top, embeddings=False)
    images = shards_of(f"{folder}/shards", read_manifest(f"{folder}/shards"), "train")
    for number in range(-(-images.total // options.batch_size)):
        one = {"id": np.array([number])}
        labeller(read_batch(images, model.experiment.views, 0, options.batch_size, one))


def ours(folder: Path, options: Options, split: str = "train") -> None:
    """What the command does."""

    def follow(event: dict[str, Any]) -> None:
        pass

    with tempfile.TemporaryDirectory() as target:
        predict(
            "untrained",
            f"{folder}/shards",
            f"{target}/labels",
            options,
            root=f"{folder}/runs",
            split=split,
            follow=follow,
        )


def peak_mib(folder: Path) -> float:
    """Most memory that a process has which labels a set, and does nothing else."""
    start_ray()
    ours(folder, Options())
    ray.shutdown()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def start_ray() -> None:
    """A cluster of this process's own."""
    ray.init(
        num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def main() -> None:
    torch.set_num_threads(CPUS)
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        manifest = cifar_shards(small, IMAGES)
        untrained(small, manifest)
        cifar_shards(large, 4 * IMAGES)
        (large / "runs").symlink_to(small / "runs")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = [pool.apply(peak_mib, (folder,)) for folder in (small, large)]
        start_ray()
        options = Options()
        seconds = alternate(
            lambda: ours(small, options), lambda: plain(small, options), rounds=ROUNDS
        )
        ray.shutdown()
    total = sum(manifest.splits["train"].class_counts)
    rates = [total / side for side in seconds]
    ratio = rates[0] / rates[1]
    columns = ["images", "images/s", "plain loop", "ratio", "driver's peak, MiB", "4 x as many"]
    row = [f"{total:,}", *(f"{rate:,.0f}" for rate in rates), f"{ratio:.2f}"]
    cells = [*row, *(f"{peak:,.0f}" for peak in peaks)]
    print_table(f"predict with {CPUS} CPUs, 32 x 32 PNGs", columns, [cells])
    print(f"ratio to a plain loop: {ratio:.2f}")


if __name__ == "__main__":
    main()
