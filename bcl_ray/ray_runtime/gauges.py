"""A worker's rates as Ray metrics, which every node offers to Prometheus.

Ray's dashboard, Prometheus and Grafana show them as ray_bcl_ray_NAME, with labels `run` and `rank`.
"""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from bcl_ray.experiment.metric_names import WORKER_RATES


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
        """Set the metrics of some rates, by the names of WORKER_RATES; the others do not exist."""
        for name, value in rates.items():
            if name not in self._gauges:
                text = WORKER_RATES[name].description
                self._gauges[name] = Gauge(f"bcl_ray_{name}", text, tag_keys=tuple(self._tags))
            self._gauges[name].set(value, self._tags)
