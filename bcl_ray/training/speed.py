"""A worker's rates while it trains, over the steps since they were last taken."""

import contextlib
import time
from collections.abc import Callable

import pynvml
import torch

from bcl_ray.method.loop import Step

DeviceLoad = Callable[[], dict[str, float]]


class SpeedMeter:
    """Adds up steps; evaluations and what lies between epochs are not in its rates.

    Args:
        load: The device's load, see `device_load`.
        clock: Seconds.
    """

    def __init__(self, load: DeviceLoad, clock: Callable[[], float] = time.perf_counter) -> None:
        self._load, self._clock = load, clock
        self._began = clock()
        self._seconds = self._waited = 0.0
        self._images = 0
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begin to time the next step."""
        self._last = self._clock()

    def add(self, step: Step) -> None:
        """Add a step that has just ended."""
        now = self._clock()
        self._seconds += now - self._last
        self._last = now
        self._waited += step.waited
        self._images += step.images

    def take(self, blocked: float) -> dict[str, float]:
        """The rates since the last call, after one step or more.

        Args:
            blocked: Seconds that checkpoints have held up this worker since its start.

        Returns:
            images_per_second (of all workers), and per cent by the other names of
            `metric_names.WORKER_RATES`. A device without a measured load has none.
        """
        seconds = max(self._seconds, 1e-9)
        rates = {
            "images_per_second": self._images / seconds,
            "data_percent": min(100 * self._waited / seconds, 100.0),
            "checkpoint_percent": 100 * blocked / max(self._clock() - self._began, 1e-9),
            **self._load(),
        }
        self._seconds = self._waited = 0.0
        self._images = 0
        return rates


def device_load(device: torch.device) -> DeviceLoad:
    """A function that asks NVML for the load of a GPU, without waiting for its work.

    It returns gpu_percent and gpu_memory_percent; nothing for CPUs, or where NVML does not answer.
    """

    def load() -> dict[str, float]:
        with contextlib.suppress(pynvml.NVMLError, RuntimeError):
            total = torch.cuda.get_device_properties(device).total_memory
            return {
                "gpu_percent": float(torch.cuda.utilization(device)),
                "gpu_memory_percent": 100 * torch.cuda.device_memory_used(device) / total,
            }
        return {}

    return load if device.type == "cuda" else dict
