"""Labelled images a second: `python -m benchmarks.predict`, about three minutes on two cores.

A ResNet-50 with new weights labels JPEG files of 500 x 375 pixels at 224 pixels on the CPU: through
`predict` (listing, reading, decoding, Ray, tables), and in as many bare processes whose batches are
in memory already. Of `predict`, the time from the first labelled images to the last counts, without
the start of its processes. Goal: 0.9 of the bare processes.

The second table is the driver's memory over numbers of simulated paths, with images and a network
that cost nothing.
"""

import argparse
import contextlib
import logging
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import ray
import torch

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import imagenet_lt
from bcl_ray.method.learner import Learner
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.storage import files
from bcl_ray.use.models import open_model
from bcl_ray.use.predict import job, labelling
from bcl_ray.use.predict.labelling import Labelling
from bcl_ray.use.predict.listing import ListFiles, Listing
from bcl_ray.use.predict.pool import ActorPool
from bcl_ray.use.predict.request import PredictionOptions
from benchmarks import print_table
from benchmarks.images import encoded, pictures

CLASSES, PROCESSES, BATCH, ROUNDS = 100, 2, 16, 2
SIMULATED = (100_000, 1_000_000)
Columns = dict[str, Any]


def new_model(folder: Path) -> tuple[str, str]:
    """A run with one checkpoint of a network that knows nothing; its folder and its hash."""
    experiment = with_overrides(
        imagenet_lt(), ["model.backbone=resnet50", "train.precision=float32"]
    )
    counts = np.linspace(1280, 5, CLASSES).astype(int)
    learner = Learner(experiment, counts, 1, torch.device("cpu"))
    run = run_folder.create(str(folder / "runs" / "new"), experiment, "f" * 64)
    best = files.join(run.uri, f"{run_folder.BEST}00000001")
    state = learner.state(
        history=[],
        fingerprint="f" * 64,
        class_names=[f"class{k}" for k in range(CLASSES)],
        class_counts=counts.tolist(),
        uid=run.uid,
    )
    checkpoint.save(state, best)
    return best, checkpoint.sha256(best)


def label_batches(model: tuple[str, str], batches: int, start: Any, ends: Any) -> None:
    """Label the same batch again and again; in a process of its own."""
    from bcl_ray.use.predict.labeller import Labeller  # noqa: PLC0415

    torch.set_num_threads(1)
    labeller = Labeller(*model, top=5, embeddings=False)
    views = np.random.default_rng(0).integers(0, 256, (BATCH, 1, 224, 224, 3), np.uint8)
    batch = {"views": views, "error": np.full(BATCH, "")}
    labeller(batch)
    start.wait()
    for _ in range(batches):
        labeller(batch)
    ends.put(time.perf_counter())


def bare(model: tuple[str, str], images: int) -> float:
    """Images a second of PROCESSES processes."""
    spawn = multiprocessing.get_context("spawn")
    start, ends = spawn.Barrier(PROCESSES + 1), spawn.Queue()
    batches = images // BATCH // PROCESSES
    processes = [
        spawn.Process(target=label_batches, args=(model, batches, start, ends))
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    start.wait()
    begun = time.perf_counter()
    last: float = max(ends.get() for _ in processes)
    for process in processes:
        process.join()
    return PROCESSES * batches * BATCH / (last - begun)


def predicted(model: str, images: Path, target: Path) -> float:
    """Images a second of `predict`, from the first labelled batch to the last."""
    progress: list[tuple[float, int]] = []

    def follow(event: Columns) -> None:
        if event.get("doing") == "labelling":
            progress.append((time.perf_counter(), event["done"]))

    options = PredictionOptions(batch_size=BATCH, part_size=4 * BATCH)
    job.predict(open_model(model), str(images), str(target), options, cpus=PROCESSES, follow=follow)
    # The first quarter is left out: perhaps not all actors have started.
    begun = next(entry for entry in progress if entry[1] >= progress[-1][1] / 4)
    return (progress[-1][1] - begun[1]) / (progress[-1][0] - begun[0])


class InstantActor:
    """Takes the place of `LabellerActor`."""

    def load(self, *_: object) -> None:
        """Load nothing."""

    def label(self, batch: Columns) -> Columns:
        """Return what a labeller returns, without having looked."""
        size = len(batch["error"])
        return {**batch, "classes": np.zeros((size, 5), int), "probabilities": np.zeros((size, 5))}


def instant_read(start: int, stop: int) -> Columns:
    """Keys of images without views."""
    paths = np.array([f"class/{number:012d}.jpg" for number in range(start, stop)])
    return {"path": paths, "error": np.full(stop - start, "")}


def driver_memory(images: int, folder: Path) -> tuple[float, float, float]:
    """Peak of Python's memory in the driver, its growth in RSS (both MiB), and seconds."""

    def paths(_: str, after: str = "") -> Iterator[str]:
        assert not after
        yield from (f"class/{number:012d}.jpg" for number in range(images))

    resident, begun = psutil.Process().memory_info().rss, time.perf_counter()
    tracemalloc.start()
    counts = ListFiles(str(folder / str(images)), 4096).extend("simulated", lambda: None)
    pool = ActorPool(PROCESSES, {"CPU": 0.75}, {"CPU": 0.25}, readers=1)
    with (
        mock.patch.object(files, "walk", paths),
        mock.patch.object(labelling, "LabellerActor", InstantActor),
        contextlib.closing(Listing(counts)) as listing,
        Labelling(
            listing, first=0, batch_size=128, read=instant_read, model=("", "", 5, False), pool=pool
        ) as running,
    ):
        labelled = sum(len(block["error"]) for block in running.blocks())
    assert labelled == images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    growth = psutil.Process().memory_info().rss - resident
    return peak / 2**20, growth / 2**20, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384, help="images to label")
    images = parser.parse_args().images
    ray.init("local", num_cpus=PROCESSES, include_dashboard=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = [(count, *driver_memory(count, folder)) for count in SIMULATED]
        print_table(
            "memory of the driver",
            ["paths", "peak, MiB", "growth of RSS, MiB", "s"],
            [[f"{row[0]:,}", *(f"{value:.1f}" for value in row[1:])] for row in memory],
        )
        (folder / "images").mkdir()
        for number, picture in enumerate(pictures(images, 500, 375)):
            (folder / "images" / f"{number:05d}.jpg").write_bytes(encoded(picture, "JPEG"))
        model, sha256 = new_model(folder)
        sides = []
        for turn in range(ROUNDS):
            through = predicted(model, folder / "images", folder / f"out{turn}")
            sides.append((through, bare((model, sha256), images // 2)))
        rows = [[turn, f"{a:.1f}", f"{b:.1f}"] for turn, (a, b) in enumerate(sides)]
        print_table("images a second", ["round", "predict", "bare processes"], rows)
    ray.shutdown()
    ratio = sum(a for a, _ in sides) / sum(b for _, b in sides)
    print(f"predict labels {ratio:.2f} x the images of the bare processes")


if __name__ == "__main__":
    main()
