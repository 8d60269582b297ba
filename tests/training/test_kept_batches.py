"""Batches of an evaluation are read once if they may stay on the device."""

import numpy as np
import pytest
import torch

from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.training import kept_batches as module
from bcl_ray.training.kept_batches import KeptBatches

CPU = torch.device("cpu")
SIZES = (4, 4, 2)


class Source:
    """Counts how often it is read."""

    def __init__(self):
        self.reads, self.fails = 0, False
        self._sender = Sender(CPU, digits_lt().views)

    def __call__(self):
        self.reads += 1
        random = np.random.default_rng(0)
        for size in SIZES:
            views = random.integers(0, 256, (size, 1, 8, 8, 3), np.uint8)
            yield self._sender.evaluation(
                [{"views": views, "labels": np.zeros(size, int), "ids": np.arange(size)}]
            )
            if self.fails:
                raise OSError("the store is down")


def pixels(batches):
    return torch.cat([batch.tensors["views"] for batch in batches])


def test_batches_that_fit_are_read_once_and_stay_the_same():
    source = Source()
    batches = KeptBatches(source, CPU)
    passes = [pixels(batches) for _ in range(3)]
    assert source.reads == 1
    assert passes[0].shape == (sum(SIZES), 1, 8, 8, 3)
    assert all(torch.equal(each, passes[0]) for each in passes)


@pytest.mark.parametrize("bytes_missing", [0, 1])
def test_batches_that_do_not_fit_are_read_each_time(bytes_missing, monkeypatch):
    source = Source()
    sizes = [sum(t.nbytes for t in batch.tensors.values()) for batch in source()]
    monkeypatch.setitem(module.LIMITS, "cpu", lambda _: sum(sizes) - bytes_missing)
    batches = KeptBatches(source, CPU)
    first, second = pixels(batches), pixels(batches)
    assert torch.equal(first, second)
    assert source.reads == 1 + (2 if bytes_missing else 1)


def test_a_pass_that_failed_is_not_kept():
    source = Source()
    source.fails = True
    batches = KeptBatches(source, CPU)
    with pytest.raises(OSError, match="store is down"):
        pixels(batches)
    source.fails = False
    assert len(pixels(batches)) == sum(SIZES)
