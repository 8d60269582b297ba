"""Ray Data as its documentation begins: read files, `map_batches` with torchvision v2, iterate."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from benchmarks.peers import BATCH, PREFETCH, WORKERS
from benchmarks.peers.torchvision_views import views_of_bytes


def write(folder: Path) -> None:
    """Do nothing: it reads the files."""


def _views(batch: dict[str, Any]) -> dict[str, Any]:
    return {"views": np.stack([views_of_bytes(image).numpy() for image in batch["bytes"]])}


def batches(folder: Path) -> Iterator[Any]:
    """Batches of one execution after another; each has the files in a new order."""
    ray.init(
        "local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_binary_files(str(folder / "source"), shuffle="files")
    dataset = images.map_batches(_views, batch_size=BATCH)
    while True:
        for batch in dataset.iter_batches(batch_size=BATCH, prefetch_batches=PREFETCH * WORKERS):
            yield batch["views"]
