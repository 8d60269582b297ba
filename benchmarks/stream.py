"""The stream: `python -m benchmarks.stream`, about two minutes on two cores.

Images per second that Ray Data delivers, in the plan's order, to a consumer that does nothing,
against the same functions (read, decode, crop, assemble) in a bare process pool of the same
size. Goals: 0.95; the first batch within 2 s on a warm cluster; at most 0.2 s between epochs.

A consumer that does nothing waits between epochs for all images of the next window of the plan.
One whose steps take as long as a stream needs at least (STEP_TIME) shows what a training waits.
"""

import contextlib
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt, imagenet_lt
from bcl_ray.training import stream
from bcl_ray.training.deliveries import Assignment, training_tasks
from bcl_ray.training.stream import SupplierClient
from bcl_ray.training.supplier_placement import own_supplier
from bcl_ray.training.tasks import Batch, joined, source_of
from benchmarks import print_table
from benchmarks.images import cifar_shards, jpeg_shards
from benchmarks.pool import pooled_blocks

POOL = 2
EPOCHS = 3
ROUNDS = 2
STEP_TIME = 1.2  # of a training step, in units of the time in which the stream makes a batch


def bare(experiment: Experiment, manifest: Manifest) -> Iterator[tuple[int, Batch]]:
    """The same batches from a pool of processes that stay warm."""
    source = source_of(experiment, manifest, training=True)
    plans = [epoch_plan(experiment, manifest, epoch) for epoch in range(experiment.train.epochs)]
    reads = ((epoch, read) for epoch, plan in enumerate(plans) for read in plan.reads())
    tasks = training_tasks(experiment, manifest, reads, 1)
    with contextlib.closing(pooled_blocks(source, tasks, POOL)) as blocks:
        for epoch, plan in enumerate(plans):
            for parts in plan.batches(blocks):
                yield epoch, joined(parts)


def streamed(experiment: Experiment, manifest: Manifest) -> Iterator[tuple[int, Batch]]:
    """The batches as a worker gets them."""
    assignment = Assignment(experiment, manifest, range(1), 1, frozenset(("training",)))
    client = SupplierClient(own_supplier(assignment), rank=0)
    for epoch, batches in stream.training_batches(experiment, manifest, client, world_size=1):
        for batch in batches:
            yield epoch, batch


def consume(
    batches: Iterator[tuple[int, Batch]], images_per_second: float = math.inf
) -> tuple[float, float, float]:
    """Consume all batches, each in the time that the given speed needs.

    Returns:
        Images per second from the second epoch on; seconds to the first batch; and the longest
        wait for the first batch of an epoch, beyond the median wait for a batch.
    """
    waits, ends, epochs, images = [], [], [], []
    begun = time.perf_counter()
    for epoch, batch in batches:
        waits.append(time.perf_counter() - begun)
        epochs.append(epoch)
        images.append(len(batch["labels"]))
        time.sleep(images[-1] / images_per_second)
        begun = time.perf_counter()
        ends.append(begun)
    second = epochs.index(1)
    rate = sum(images[second:]) / (ends[-1] - ends[second - 1])
    borders = np.flatnonzero(np.diff(epochs)) + 1
    return rate, waits[0], max(waits[border] for border in borders) - statistics.median(waits)


def compare(name: str, experiment: Experiment, manifest: Manifest) -> tuple[list[str], float]:
    """A table row: both sides in turn, medians."""
    for _ in streamed(with_overrides(experiment, ["train.epochs=1"]), manifest):
        pass  # warm: processes of both sides have imported what they need
    ours, pools = [], []
    for _ in range(ROUNDS):
        ours.append(consume(streamed(experiment, manifest)))
        pools.append(consume(bare(experiment, manifest)))
    rate, first, gap = (statistics.median(column) for column in zip(*ours, strict=True))
    pool_rate = statistics.median(rate for rate, _, _ in pools)
    ratio = rate / pool_rate
    _, _, wait = consume(streamed(experiment, manifest), rate / STEP_TIME)
    cells = [f"{rate:,.0f}", f"{pool_rate:,.0f}", f"{ratio:.2f}", f"{first:.1f}", f"{gap:.2f}"]
    cells.append(f"{wait:.2f}")
    return [name, *cells], ratio


def main() -> None:
    ray.init(
        "local",
        num_cpus=POOL,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options = [f"train.epochs={EPOCHS}", "scale.workers=1", "optim.warmup_epochs=0"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = jpeg_shards(folder / "jpeg", 1280)
        pngs = cifar_shards(folder / "cifar", 12406)
        large = with_overrides(imagenet_lt(), [f"data.path={folder}/jpeg/shards", *options])
        small = with_overrides(cifar10_lt(), [f"data.path={folder}/cifar/shards", *options])
        first, ratio = compare("500 x 375 JPEG to 3 x 224", large, jpegs)
        second, _ = compare("32 x 32 PNG to 3 x 32", small, pngs)
    ray.shutdown()
    columns = ["images", "images/s", "bare pool", "ratio", "first batch, s", "between epochs, s"]
    columns.append("with steps, s")
    print_table(f"stream with {POOL} CPUs for data", columns, [first, second])
    print(f"ratio to a bare pool, JPEGs: {ratio:.2f} (goal 0.95)")


if __name__ == "__main__":
    main()
