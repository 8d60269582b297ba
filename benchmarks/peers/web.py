"""WebDataset over local tar files, with torchvision v2."""

import importlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import BATCH, IMAGES, PREFETCH, WORKERS
from benchmarks.peers.torchvision_views import views_of_bytes

webdataset = importlib.import_module("webdataset")

_TARS = 4


def write(folder: Path) -> None:
    """Deal the files out to a few tar files."""
    files = sorted((folder / "source").glob("*.jpg"))
    for number in range(_TARS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for file in files[number::_TARS]:
                tar.add(file, file.name)


def batches(folder: Path) -> Iterator[Any]:
    """Batches made and joined in the workers; tar files and a buffer of images are shuffled."""
    dataset = (
        webdataset.WebDataset(
            [str(folder / f"{number}.tar") for number in range(_TARS)], shardshuffle=_TARS
        )
        .shuffle(IMAGES // WORKERS)
        .to_tuple("jpg")
        .map_tuple(views_of_bytes)
        .batched(BATCH, collation_fn=_stacked)
    )
    loader = webdataset.WebLoader(
        dataset,
        batch_size=None,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=PREFETCH,
    )
    while True:
        yield from loader


def _stacked(samples: list[tuple[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([views for (views,) in samples])
