"""A worker's rates as Ray metrics, which every node offers to Prometheus.

Ray's dashboard, Prometheus and Grafana show them as ray_bcl_ray_NAME, with labels `run` and `rank`.
"""

from collections.abc import Mapping

from ray.util.metrics import Gauge

DESCRIPTIONS = {
    "images_per_second": "Training images a second of this worker; their sum is the run's.",
    "data_percent": "Per cent of its time that this worker waited for batches.",
    "checkpoint_percent": "Per cent of its time since its start that checkpoints held it up.",
    "gpu_percent": "Per cent of the last second in which this worker's GPU was in use.",
    "gpu_memory_percent": "Per cent of its GPU's memory that is in use.",
}
"""All rates, by name."""


class WorkerGauges:
    """The metrics of one worker.

    Args:
        run: Name of the run.
        rank: Number of the worker.
    """

    def __init__(self, run: str, rank: int) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._gauges: dict[str, Gauge] = {}

    def set(self, rates: Mapping[str, float]) -> None:
        """Set the metrics of some rates, by the names of DESCRIPTIONS; others do not exist."""
        for name, value in rates.items():
            if name not in self._gauges:
                text = DESCRIPTIONS[name]
                self._gauges[name] = Gauge(f"bcl_ray_{name}", text, tag_keys=tuple(self._tags))
            self._gauges[name].set(value, self._tags)
