"""Batches of an evaluation are read once if the device has room for them."""

import numpy as np
import pytest
import torch

pytest.importorskip("ray")

from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.training import feed as module
from bcl_ray.training.feed import KeptBatches

CPU = torch.device("cpu")
SIZES = (4, 4, 2)


def test_batches_are_read_once_and_stay_the_same():
    reads = 0

    def source():
        nonlocal reads
        reads += 1
        random, sender = np.random.default_rng(0), Sender(CPU, digits_lt().views)
        for size in SIZES:
            views = random.integers(0, 256, (size, 1, 8, 8, 3), np.uint8)
            yield sender.send_evaluation(
                [{"views": views, "labels": np.zeros(size, int), "ids": np.arange(size)}]
            )

    batches = KeptBatches(source())
    passes = [torch.cat([batch.tensors["views"] for batch in batches]) for _ in range(3)]
    assert reads == 1
    assert passes[0].shape == (sum(SIZES), 1, 8, 8, 3)
    assert all(torch.equal(each, passes[0]) for each in passes)


@pytest.mark.parametrize("missing", [0, 1])
def test_images_are_kept_if_the_device_has_room_for_all_of_them(missing, tmp_path, monkeypatch):
    write_shards(open_source("digits"), str(tmp_path))
    manifest = read_manifest(str(tmp_path))
    size = 3 * 8 * 8 * manifest.splits["test"].rows
    monkeypatch.setattr(module, "kept_limit", lambda _: size - missing)
    assert module._may_keep(digits_lt(), manifest, CPU) == (not missing)
