"""A worker's rates while it trains: for the display, for Ray's metrics, and of each epoch."""

import contextlib
import time
from collections.abc import Callable, Mapping

import pynvml
import torch
from ray.util.metrics import Gauge

from bcl_ray.experiment.metric_names import DATA_SHARE, EPOCH_SECONDS, SPEED, WORKER_RATES
from bcl_ray.method.collectives import rank, sum_over_workers, world_size
from bcl_ray.method.loop import Step

INTERVAL = 0.5  # seconds between two reports of a worker's progress

DeviceLoad = Callable[[], dict[str, float]]


class Progress:
    """The progress of a worker's training, in rates.

    Args:
        run: Name of the run.
        device: The worker's device.
    """

    def __init__(self, run: str, device: torch.device) -> None:
        self._device = device
        self._meter = SpeedMeter(device_load(device))
        self._gauges = WorkerGauges(run, rank())
        self._last_report = time.monotonic()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begin to time an epoch and its first step."""
        self._begun, self._waited, self._images = time.perf_counter(), 0.0, 0
        self._meter.begin_epoch()

    def add(self, step: Step, blocked: float) -> dict[str, float] | None:
        """Add a step that has just ended; every INTERVAL seconds Ray's metrics get the rates.

        Args:
            step: The step.
            blocked: Seconds that checkpoints have held up this worker since its start.

        Returns:
            The rates that Ray's metrics got, or None; images_per_second is that of all workers,
            where the metric has this worker's share.
        """
        self._waited += step.waited
        self._images += step.images
        self._meter.add(step)
        if time.monotonic() - self._last_report <= INTERVAL:
            return None
        self._last_report = time.monotonic()
        rates = self._meter.take(blocked)
        own = {"images_per_second": rates["images_per_second"] / world_size()}
        self._gauges.set(rates | own)
        return rates

    def epoch_rates(self) -> dict[str, float]:
        """Metrics of the epoch's training until now, means over workers, which all call this.

        An epoch without steps has no rates: all were done before the checkpoint from which the run
        goes on.
        """
        times = [time.perf_counter() - self._begun, self._waited]
        on_device = torch.tensor(times, dtype=torch.float64, device=self._device)
        seconds, waited = (sum_over_workers(on_device) / world_size()).tolist()
        if not self._images:
            return {}
        return {
            EPOCH_SECONDS: seconds,
            DATA_SHARE: 100 * waited / seconds,
            SPEED: self._images / seconds,
        }


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
        self._images = 0  # of all workers
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
            `metric_names.WORKER_RATES`; checkpoint_percent since the worker's start. A device
            without a measured load has none.
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


class WorkerGauges:
    """A worker's rates as Ray metrics, which every node offers to Prometheus.

    Ray's dashboard, Prometheus and Grafana show them as ray_bcl_ray_NAME, with labels `run` and
    `rank`.

    Args:
        run: Name of the run.
        rank: Number of the worker.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._gauges: dict[str, Gauge] = {}

    def set(self, rates: Mapping[str, float]) -> None:
        """Set metrics from rates, whose names are those of WORKER_RATES.

        A rate that is never given has no metric.
        """
        for name, value in rates.items():
            if name not in self._gauges:
                text = WORKER_RATES[name].description
                self._gauges[name] = Gauge(f"bcl_ray_{name}", text, tag_keys=tuple(self._tags))
            self._gauges[name].set(value, self._tags)


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
