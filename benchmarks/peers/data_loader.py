"""torch's DataLoader over files, with torchvision v2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.io import read_file

from benchmarks.peers import BATCH, PREFETCH, WORKERS
from benchmarks.peers.torchvision_views import views_of


class _Files(Dataset[torch.Tensor]):
    def __init__(self, folder: Path) -> None:
        self._files = sorted(map(str, (folder / "source").glob("*.jpg")))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return views_of(read_file(self._files[index]))


def write(folder: Path) -> None:
    """Do nothing: it reads the files."""


def batches(folder: Path) -> Iterator[Any]:
    """Batches in a new order every epoch, from processes that persist."""
    loader = DataLoader(
        _Files(folder),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=PREFETCH,
    )
    while True:
        yield from loader
