"""MosaicML Streaming over local MDS shards, with torchvision v2."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import BATCH, PREFETCH, WORKERS
from benchmarks.peers.torchvision_views import views_of_bytes

streaming = importlib.import_module("streaming")


def write(folder: Path) -> None:
    """Write the files' bytes as they are, without compression."""
    with streaming.MDSWriter(out=str(folder / "mds"), columns={"image": "bytes"}) as writer:
        for file in sorted((folder / "source").glob("*.jpg")):
            writer.write({"image": file.read_bytes()})


def batches(folder: Path) -> Iterator[Any]:
    """Batches in a new order every epoch, from processes that persist."""
    loader = streaming.StreamingDataLoader(
        streaming.StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH),
        batch_size=BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=PREFETCH,
        collate_fn=_views,
    )
    while True:
        yield from loader


def _views(samples: Sequence[dict[str, bytes]]) -> torch.Tensor:
    return torch.stack([views_of_bytes(sample["image"]) for sample in samples])
