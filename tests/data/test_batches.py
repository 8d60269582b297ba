"""The thread that prefetches batches."""

import itertools
import subprocess
import sys
import threading
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


def run(first_step: int = 0, make=lambda rows: rows):
    """The batches of three epochs as (epoch, positions); `make` gets the rows of each read."""
    experiment = with_overrides(
        cifar10_lt(), ["train.epochs=3", f"optim.global_batch_size={BATCH}"]
    )

    def blocks(reads):
        for epoch, read in reads:
            yield {"rows": make(plans(epoch).layout.positions(read))}

    def deliver(parts, _epoch):
        return np.concatenate([part["rows"] for part in parts]).tolist()

    epochs = planned_batches(experiment, plans, blocks, deliver, first_step=first_step)
    return ((epoch, batch) for epoch, batches in epochs for batch in batches)


@pytest.mark.parametrize("first_step", [0, 5, 62, 70])
def test_batches_of_all_epochs_are_those_of_the_plans(first_step):
    steps = plans(0).steps
    everything = [
        (epoch, plans(epoch).rows(s).tolist()) for epoch in range(3) for s in range(steps)
    ]
    assert list(run(first_step)) == everything[first_step:]


def test_the_first_batch_waits_for_its_own_rows_alone():
    made, proceed = 0, threading.Event()

    def make(rows):
        nonlocal made
        if made >= BATCH:
            assert proceed.wait(60)
        made += len(rows)
        return rows

    batches = run(make=make)
    next(batches)
    assert made == BATCH
    proceed.set()
    assert len(list(batches)) == 3 * plans(0).steps - 1


def test_rows_are_made_ahead_but_no_more_than_a_window():
    """A slow consumer; the windows are of 10 or 11 steps."""
    window, waiting = 11 * BATCH, []
    made = used = 0

    def make(rows):
        nonlocal made
        made += len(rows)
        waiting.append(made - used)
        return rows

    for _, batch in run(make=make):
        time.sleep(0.002)
        used += len(batch)
    prefetched = (4 + 2) * BATCH  # batches that wait, and one in each of two hands
    assert window < max(waiting) <= 2 * window + prefetched + GROUP


def test_row_groups_of_one_row_are_enough_to_go_on():
    """Version 1 of the plan, one lane: half of the rows in use is less than a row."""
    experiment = with_overrides(cifar10_lt(), ["train.epochs=2", "optim.global_batch_size=4"])
    layout = Layout(np.array([40]), 1)

    def plan(epoch):
        options = {"global_batch_size": 4, "max_workers": 1, "version": 1}
        return EpochPlan(layout, seed=0, epoch=epoch, **options)

    def blocks(reads):
        yield from ({"rows": layout.positions(read)} for _, read in reads)

    epochs = planned_batches(experiment, plan, blocks, lambda parts, _: len(parts))
    assert [len(list(batches)) for _, batches in epochs] == [10, 10]


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


@pytest.mark.slow
def test_an_interpreter_that_ends_stops_the_thread_where_it_may_end():
    """Ended within PyTorch, as a daemon thread is, it aborts the process: SIGABRT."""
    ends = """
import torch
from bcl_ray.data.batches import prefetch

def items():
    try:
        while True:
            yield torch.zeros(64, 3, 32, 32, dtype=torch.uint8).float().sum()
    finally:
        print("closed")

unread = prefetch(items(), 1_000_000)
next(unread)
"""
    done = subprocess.run([sys.executable, "-c", ends], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
