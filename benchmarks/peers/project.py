"""This project through Ray, as a training worker gets its batches."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from bcl_ray.data.shards import read_manifest
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import imagenet_lt
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.stream import SupplierClient, training_batches
from bcl_ray.training.supplier_placement import own_supplier
from benchmarks.peers import BATCH, RATIO, SCALE, SIZE, WORKERS


def write(folder: Path) -> None:
    """Do nothing: `benchmarks.images.jpeg_shards` has written the shards with the files."""


def batches(folder: Path) -> Iterator[Any]:
    """Batches of the ImageNet-LT recipe; the colour part is left to the device."""
    ray.init(
        "local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    crops = [
        f"views.{view}.{name}=[{low}, {high}]"
        for view in ("classification", "contrastive")
        for name, (low, high) in (("scale", SCALE), ("ratio", RATIO))
    ]
    experiment = with_overrides(
        imagenet_lt(),
        [
            f"data.path={folder}/shards",
            f"optim.global_batch_size={BATCH}",
            f"views.image_size={SIZE}",
            "scale.workers=1",
            *crops,
        ],
    )
    manifest = read_manifest(str(folder / "shards"))
    assignment = Assignment(experiment, manifest, range(1), 1, frozenset(("training",)))
    client = SupplierClient(own_supplier(assignment), rank=0)
    for _, epoch in training_batches(experiment, manifest, client, world_size=1):
        for batch in epoch:
            yield batch["views"]
