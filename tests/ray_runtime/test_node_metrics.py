import collections
import threading
import time

import psutil
import pytest

from bcl_ray.ray_runtime import node_metrics
from bcl_ray.ray_runtime.node_metrics import NodeSampler

EVERY = node_metrics.SAMPLE_INTERVAL  # seconds


@pytest.fixture
def sampler(monkeypatch):
    monkeypatch.setattr(node_metrics, "SAMPLE_INTERVAL", 3600)  # it samples only when it is told to
    return NodeSampler()


def test_memory_is_that_of_the_machine(sampler):
    before = psutil.virtual_memory().percent
    assert sampler.take()["memory_percent"] == pytest.approx(before, abs=10)


def test_work_between_two_takes_is_seen_and_belongs_to_one_of_them(sampler):
    sampler.take()
    until = time.process_time() + 0.3
    while time.process_time() < until:  # at least one core is busy
        pass
    busy = sampler.take()["cpu_percent"]
    assert 100 / (psutil.cpu_count() + 1) <= busy <= 100
    assert set(sampler._sums.values()) == set(), "nothing is left for the next one"


def test_traffic_is_counted_from_one_take_to_the_next(sampler, monkeypatch):
    traffic = {"network_received": 10 * 2**20, "network_sent": 0}
    monkeypatch.setattr(sampler, "_traffic", dict.fromkeys(traffic, 0))
    monkeypatch.setattr(sampler, "_since", time.monotonic() - 2)
    monkeypatch.setattr(node_metrics, "_traffic", lambda: traffic)
    values = sampler.take()
    assert values["network_received_mib_per_second"] == pytest.approx(5, rel=0.1)
    assert sampler.take()["network_received_mib_per_second"] == 0


def test_gpus_are_measured_one_by_one_and_one_that_does_not_answer_is_left_out(
    sampler, monkeypatch
):
    """Stands in for NVIDIA's library: there is no GPU here."""

    class Answer:
        def __init__(self, **values):
            vars(self).update(values)

    def memory(gpu):
        if gpu == "broken":
            raise node_metrics.pynvml.NVMLError(node_metrics.pynvml.NVML_ERROR_NOT_SUPPORTED)
        return Answer(used=20, total=80)

    monkeypatch.setattr(node_metrics.pynvml, "nvmlDeviceGetMemoryInfo", memory)
    monkeypatch.setattr(
        node_metrics.pynvml, "nvmlDeviceGetUtilizationRates", lambda gpu: Answer(gpu=90)
    )
    monkeypatch.setattr(sampler, "_gpus", ["good", "broken"])
    values = sampler.take()
    gpus = {name: value for name, value in values.items() if name.startswith("gpu")}
    assert gpus == {"gpu_0_percent": 90, "gpu_0_memory_percent": 25}


@pytest.mark.parametrize(
    ("node_name", "name"),
    [
        ("train-1", "train-1"),
        ("gpu node.2", "gpu-node-2"),
        ("10.0.0.7", "ip-10-0-0-7"),
        ("", "ip-10-0-0-7"),
    ],
)
def test_a_node_has_the_name_that_ray_was_given_or_that_of_its_machine(node_name, name):
    node = {"NodeName": node_name, "NodeManagerHostname": "ip-10-0-0-7.ec2.internal"}
    assert node_metrics.name_of(node) == name


def test_a_sample_takes_little_time(sampler):
    begun = time.process_time()
    for _ in range(100):
        sampler._sample()
    assert (time.process_time() - begun) / 100 / EVERY < 0.001, "of one core"


def test_per_cent_is_of_the_time_of_all_cores_that_was_not_idle():
    times = collections.namedtuple("times", "user system idle iowait guest guest_nice")
    before, now = times(10, 5, 100, 0, 1, 0), times(13, 6, 105, 1, 2, 0)
    assert node_metrics._machine_cpu_percent(before, now) == pytest.approx(40)
    assert node_metrics._machine_cpu_percent(now, now) == 0


def test_a_sampler_that_is_ended_has_no_thread():
    others = set(threading.enumerate())
    running = NodeSampler()
    (thread,) = set(threading.enumerate()) - others
    running.end()
    thread.join(5)
    assert not thread.is_alive()
