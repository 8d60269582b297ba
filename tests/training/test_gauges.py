"""Workers' rates as Prometheus reads them from a real Ray."""

import re
import time
import urllib.request

import pytest

from bcl_ray.experiment.metric_names import WORKER_RATES
from tests.local_ray import local_ray_running

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray
SECONDS = 60  # Ray exports metrics every 10


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with local_ray_running():
        yield


def scraped() -> str:
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def values(text: str, name: str) -> dict[tuple[str, str], float]:
    """Values of a metric by run and rank."""
    found = {}
    for labels, value in re.findall(rf"^ray_bcl_ray_{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[label["run"], label["rank"]] = float(value)
    return found


def test_prometheus_reads_the_rates_of_each_worker_by_run_and_rank():
    @ray.remote(num_cpus=0.1)
    class OneWorker:
        def __init__(self, rank):
            from bcl_ray.training.speed import WorkerGauges

            self.gauges = WorkerGauges("mine", rank)

        def set(self, rates):
            self.gauges.set(rates)

    workers = [OneWorker.remote(rank) for rank in range(2)]
    for speed, worker in zip((100.0, 90.0), workers, strict=True):
        ray.get(worker.set.remote({"images_per_second": speed, "data_percent": 5.0}))
    expected = {("mine", "0"): 100.0, ("mine", "1"): 90.0}
    until = time.monotonic() + SECONDS
    while values(text := scraped(), "images_per_second") != expected:
        assert time.monotonic() < until, "Ray has not exported the metrics"
        time.sleep(1)
    assert values(text, "data_percent") == dict.fromkeys(expected, 5.0)
    for absent in WORKER_RATES.keys() - {"images_per_second", "data_percent"}:
        assert f"bcl_ray_{absent}" not in text, "what was not measured is left out, never 0"
