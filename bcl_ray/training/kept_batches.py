"""Evaluation batches that stay on the device: only the first evaluation of a run reads them."""

from collections.abc import Callable, Iterable, Iterator

import torch

from bcl_ray.data.layout import split_layout
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import DeviceBatch
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import sum_over_workers, world_size

CPU_BYTES = 256 * 2**20  # of a worker's memory
GPU_SHARE = 0.1  # of a GPU's memory

# Most bytes that a worker's batches may take, by type of device.
LIMITS: dict[str, Callable[[torch.device], float]] = {
    "cpu": lambda _: CPU_BYTES,
    "cuda": lambda device: GPU_SHARE * torch.cuda.get_device_properties(device).total_memory,
}


def may_keep(experiment: Experiment, manifest: Manifest, device: torch.device) -> bool:
    """Whether every worker's device has room for its part of the evaluation split.

    All workers call it, and get the same answer.
    """
    rows = split_layout(experiment, manifest, "evaluation").rows
    size = 3 * experiment.views.image_size**2 * rows / world_size()
    lacks_room = torch.tensor([float(size > LIMITS[device.type](device))], device=device)
    return not sum_over_workers(lacks_room).any()


class KeptBatches:
    """A worker's batches of a split, any number of times, of which only the first reads them.

    Args:
        batches: Batches, which are read once.
    """

    def __init__(self, batches: Iterable[DeviceBatch]) -> None:
        self._batches = iter(batches)
        self._kept: list[DeviceBatch] = []

    def __iter__(self) -> Iterator[DeviceBatch]:
        """All batches, in the same order each time."""
        yield from self._kept
        for batch in self._batches:
            self._kept.append(batch)
            yield batch
