"""The thread that prefetches batches."""

import itertools
import time

import numpy as np
import pytest

from bcl_ray.data.batches import planned_batches, prefetch
from bcl_ray.data.layout import Layout
from bcl_ray.data.plan import EpochPlan
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt

ROWS, GROUP, BATCH = 1000, 10, 16


def plans(epoch: int) -> EpochPlan:
    layout = Layout(np.array([ROWS]), GROUP)
    return EpochPlan(layout, seed=0, epoch=epoch, global_batch_size=BATCH, max_workers=1)


def run(first_step: int = 0) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """All batches of three epochs, as (epoch, positions); and rows that were made before each."""
    experiment = with_overrides(
        cifar10_lt(), ["train.epochs=3", f"optim.global_batch_size={BATCH}"]
    )
    made, before = 0, []

    def blocks(reads):
        nonlocal made
        for epoch, read in reads:
            made += len(read.rows)
            yield {"rows": plans(epoch).layout.positions(read)}

    def deliver(parts, _epoch):
        before.append(made)
        return np.concatenate([part["rows"] for part in parts]).tolist()

    epochs = planned_batches(experiment, plans, blocks, deliver, first_step=first_step)
    return [(epoch, batch) for epoch, batches in epochs for batch in batches], before


@pytest.mark.parametrize("first_step", [0, 5, 62, 70])
def test_batches_of_all_epochs_are_those_of_the_plans(first_step):
    steps = plans(0).steps
    everything = [
        (epoch, plans(epoch).rows(s).tolist()) for epoch in range(3) for s in range(steps)
    ]
    assert run(first_step)[0] == everything[first_step:]


def test_the_first_batch_waits_for_itself_and_later_ones_never_for_a_whole_window():
    """Windows are of 10 or 11 steps. Rows are made at the pace of training, across epochs too."""
    _, made = run()
    assert made[0] == BATCH
    ramp = 1 + 4 + 16
    assert max(np.diff(made[ramp:])) <= BATCH + GROUP
    assert made[-1] == 3 * plans(0).steps * BATCH


def test_what_the_producer_raises_reaches_the_consumer():
    def items():
        yield 1
        raise ValueError("broken pipe")

    made = prefetch(items(), 2)
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken pipe"):
        next(made)


def test_a_consumer_that_leaves_stops_the_producer():
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    made = prefetch(items(), 2)
    assert next(made) == 0
    made.close()
    for _ in range(100):
        if closed:
            break
        time.sleep(0.05)
    assert closed
