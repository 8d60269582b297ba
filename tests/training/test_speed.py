import pytest
import torch

pytest.importorskip("pynvml")

from bcl_ray.method.loop import Step
from bcl_ray.training.speed import SpeedMeter, device_load


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def step(waited: float) -> Step:
    return Step(1, torch.zeros(3), waited, 64, frozenset())


def test_rates_are_those_of_the_steps_since_they_were_taken():
    clock = Clock()
    meter = SpeedMeter(dict, clock)
    clock.now += 4  # of an evaluation, say: not of a step
    meter.begin_epoch()
    for waited in (0.0, 1.0):
        clock.now += 2
        meter.add(step(waited))
    assert meter.take(blocked=0.8) == {
        "images_per_second": 128 / 4,
        "data_percent": 25.0,
        "checkpoint_percent": 10.0,  # 0.8 of 8 s since the start
    }
    clock.now += 1
    meter.add(step(0.0))
    again = meter.take(blocked=0.8)
    assert (again["images_per_second"], again["data_percent"]) == (64.0, 0.0)


def test_a_cpu_has_no_rates_of_a_gpu():
    assert device_load(torch.device("cpu"))() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_does_not_answer_has_none_either():
    assert device_load(torch.device("cuda:0"))() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_its_use_and_its_memory_in_per_cent():
    load = device_load(torch.device("cuda:0"))()
    assert load.keys() == {"gpu_percent", "gpu_memory_percent"}
    assert all(0 <= value <= 100 for value in load.values())
