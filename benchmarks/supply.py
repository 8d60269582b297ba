"""Supply of many workers: `python -m benchmarks.supply`, about two minutes on two cores.

First, what Ray gives: the CPUs that executions of Ray Data get of those that workers leave, by
Ray's own coordinator, for clusters of any size. Once for suppliers, and once for one execution per
worker, which the project had before: in steady state, and with a second one per worker, at an
evaluation. A supplier serves evaluations, so its share is the same then. Goal: 0.9 in every row.

Second, live on this machine: images per second that 1, 2 and 4 consumers, which do nothing, get
from one supplier, against a bare process pool of the same size. Goal: 0.95. Bytes of views that
cross the network follow from the sizes.
"""

import itertools
import logging
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import imagenet_lt
from bcl_ray.ray_runtime.internals import _AutoscalingCoordinatorActor
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.stream import SupplierClient, training_batches
from bcl_ray.training.supplier_placement import grouped_nodes, own_supplier
from benchmarks import print_table
from benchmarks.images import jpeg_shards
from benchmarks.stream import POOL, bare

CLUSTERS = (  # nodes, CPUs of each, workers, CPUs of each worker
    (1, 2, 2, 0.5),
    (1, 96, 8, 1),
    (2, 48, 8, 2),
    (8, 48, 64, 1),
    (8, 96, 64, 1),
    (8, 192, 64, 1),
    (32, 128, 256, 2),
    (128, 192, 1024, 1),
)
ROUNDS = 2
IMAGES = 1280
EPOCHS = 3
RESOURCES = ["CPU", "GPU", "memory", "object_store_memory"]


def cpus_of_executions(
    nodes: int, cpus: int, workers: int, cpus_per_worker: float, executions: int
) -> float:
    """CPUs that a number of executions get together, by Ray's coordinator."""
    cluster = [
        {"NodeID": f"{node:04d}", "Alive": True, "Resources": {"CPU": cpus, "GPU": 8}, "Labels": {}}
        for node in range(nodes)
    ]
    coordinator = _AutoscalingCoordinatorActor(lambda: 0.0, lambda *_, **__: None, lambda: cluster)
    ours = [{"CPU": cpus_per_worker, "GPU": 8 * nodes / workers}] * workers
    coordinator.request_resources("run", ours, 1e9)
    for number in range(executions):
        coordinator.request_resources(f"data-{number}", [], 1e9, request_remaining=RESOURCES)
    total = 0.0
    for number in range(executions):
        reserved = coordinator.get_reserved_resources(f"data-{number}")
        total += sum(node.get("CPU", 0.0) for node in reserved.values())
    return total


def supply_row(nodes: int, cpus: int, workers: int, each: float) -> tuple[list[str], float]:
    """A row of the first table, and the share that suppliers get."""
    left = nodes * cpus - workers * each
    names = [f"{node:04d}" for node in range(nodes)]
    free = dict.fromkeys(names, cpus - workers / nodes * each)
    suppliers = len(grouped_nodes(names, free))
    cluster = (nodes, cpus, workers, each)
    share = cpus_of_executions(*cluster, suppliers) / left
    before = [cpus_of_executions(*cluster, n * workers) / left for n in (1, 2)]
    cells = [f"{workers} x {each:g}", f"{left:g}", str(suppliers), f"{share:.2f}"]
    return [f"{nodes} x {cpus}", *cells, *(f"{value:.2f}" for value in before)], share


def delivered(experiment: Experiment, manifest: Manifest, consumers: int) -> float:
    """Images per second that consumers get together, from the second epoch on."""
    assignment = Assignment(
        experiment, manifest, range(consumers), consumers, frozenset(("training",))
    )
    supplier = own_supplier(assignment)
    counts: list[list[tuple[float, int, int]]] = [[] for _ in range(consumers)]

    def consume(rank: int) -> None:
        client = SupplierClient(supplier, rank)
        epochs = training_batches(experiment, manifest, client, world_size=consumers)
        for epoch, batches in epochs:
            for batch in batches:
                counts[rank].append((time.perf_counter(), epoch, len(batch["ids"])))

    threads = [threading.Thread(target=consume, args=(rank,)) for rank in range(consumers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return steady_rate(sorted(itertools.chain(*counts)))


def steady_rate(moments: list[tuple[float, int, int]]) -> float:
    """Images per second of (moment, epoch, images), from the end of the first epoch on."""
    first = max(moment for moment, epoch, _ in moments if epoch == 0)
    images = sum(number for _, epoch, number in moments if epoch > 0)
    return images / (moments[-1][0] - first)


def pooled(experiment: Experiment, manifest: Manifest) -> float:
    """Images per second of the bare pool."""
    return steady_rate(
        [(time.perf_counter(), epoch, len(b["ids"])) for epoch, b in bare(experiment, manifest)]
    )


def live(folder: Path) -> list[tuple[list[str], float]]:
    """Rows of the second table, each with its ratio."""
    manifest = jpeg_shards(folder, IMAGES)
    options = [f"data.path={folder}/shards", f"train.epochs={EPOCHS}", "optim.warmup_epochs=0"]
    experiment = with_overrides(imagenet_lt(), options)
    rates: dict[Any, list[float]] = {number: [] for number in (1, 2, 4, "pool")}
    for _ in range(ROUNDS):
        for number, values in rates.items():
            if number == "pool":
                values.append(pooled(experiment, manifest))
            else:
                values.append(delivered(experiment, manifest, number))
    pool = statistics.median(rates.pop("pool"))
    rows = []
    for number, values in rates.items():
        rate = statistics.median(values)
        rows.append(([str(number), f"{rate:,.0f}", f"{rate / pool:.2f}"], rate / pool))
    return rows


def print_network_bytes() -> None:
    """Bytes of views per image, and the share of them that crosses the network."""
    views = imagenet_lt().views
    size = 3 * views.image_size**2 * (1 + views.num_contrastive)
    print(f"bytes of views per image, 3 x {views.image_size} px: {size:,}")
    print("of them over the network: 0 where they are made on the worker's own node")
    for nodes in (2, 8, 128):
        print(f"  {size * (nodes - 1) / nodes:,.0f} if any of {nodes} nodes makes them")


def main() -> None:
    """Print both tables."""
    rows, shares = zip(*(supply_row(*cluster) for cluster in CLUSTERS), strict=True)
    columns = ["nodes x CPUs", "workers x CPUs", "left", "suppliers", "their share"]
    columns += ["a stream per worker", "two"]
    print_table("CPUs for data, of those that workers leave", columns, rows)
    print_network_bytes()
    ray.init(
        "local",
        num_cpus=POOL,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory() as name:
        found = live(Path(name))
    ray.shutdown()
    print_table(
        f"one supplier with {POOL} CPUs", ["consumers", "images/s", "ratio"], [r for r, _ in found]
    )
    print(f"share of the CPUs, least of all rows: {min(shares):.2f} (goal 0.90)")
    print(f"ratio to a bare pool, least: {min(ratio for _, ratio in found):.2f} (goal 0.95)")


if __name__ == "__main__":
    main()
