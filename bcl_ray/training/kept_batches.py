"""Evaluation batches that stay on the device: only the first evaluation of a run reads them."""

from collections.abc import Callable, Iterable, Iterator

import torch

from bcl_ray.data.views.transfer import DeviceBatch

CPU_BYTES = 256 * 2**20  # of a worker's memory
GPU_SHARE = 0.5  # of the memory that training has left free

# Most bytes that a worker's batches may take, by type of device.
LIMITS: dict[str, Callable[[torch.device], float]] = {
    "cpu": lambda _: CPU_BYTES,
    "cuda": lambda device: GPU_SHARE * torch.cuda.mem_get_info(device)[0],
}


class KeptBatches:
    """A worker's batches of a split, any number of times; without reading if they may be kept.

    Args:
        read: Reads the batches.
        device: The worker's device. Ask for batches only after training has taken the memory that
            it needs.
    """

    def __init__(self, read: Callable[[], Iterable[DeviceBatch]], device: torch.device) -> None:
        self._read, self._device = read, device
        self._kept: list[DeviceBatch] | None = None

    def __iter__(self) -> Iterator[DeviceBatch]:
        """All batches, in the same order each time."""
        if self._kept is not None:
            yield from self._kept
            return
        left, kept = LIMITS[self._device.type](self._device), []
        for batch in self._read():
            left -= sum(tensor.nbytes for tensor in batch.tensors.values())
            kept.append(batch)
            if left < 0:
                kept.clear()
            yield batch
        if left >= 0:
            self._kept = kept
