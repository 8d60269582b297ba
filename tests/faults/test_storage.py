"""Faults of what a run depends on: object storage, tracking, disks, its own checkpoints."""

import contextlib
import os
import re
import time

import pytest

from tests.faults.conftest import EPOCHS
from tests.faulty_proxy import FaultyProxy

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
OUTAGE = 60  # seconds
FAULTS = ("slow_down", "denied", "reset", "slow_first_byte", "truncated", "internal_error")


def test_s3_down_for_a_minute_while_training_reads_and_for_another_during_uploads_then_mlflow(
    drill,
):
    job = drill.start("down", "train.checkpoint_every_steps=2")
    job.wait_for(lambda: "workers started" in job.output)
    with outage(drill.cluster, "s3"):
        time.sleep(OUTAGE)
        assert job.process.poll() is None, job.output
        assert job.epochs() == 0
    job.wait_for_mid_epoch()
    before = waits(job)
    assert before > 0, job.output
    with outage(drill.cluster, "s3"):
        time.sleep(OUTAGE)  # every other step has a checkpoint: its files wait, or the note of it
    with outage(drill.cluster, "mlflow"):
        done = job.epochs()
        job.wait_for_epoch(done + 2)  # one of them from its begin to its end
    job.succeed()
    assert job.starts() == [0], "nothing was started again"
    assert waits(job) > before, job.output
    drill.check_same(job)


def waits(job) -> int:
    """How often the first worker has said that it waits."""
    return len(re.findall(r"worker 0: no progress for 2\d s, still waiting", job.output))


def test_nodes_whose_disks_are_full_until_somebody_makes_room(drill):
    """Checkpoints need no disk of a node's, but Ray does: for its logs, to start a process."""
    with drill.small_disks() as folders:
        job = drill.start("disk-full")
        job.wait_for_mid_epoch()
        for folder in folders.values():
            fill(folder)
        time.sleep(20)
        assert job.process.poll() is None, job.output
        for folder in folders.values():
            (folder / "ballast").unlink()
        job.succeed()
        drill.check_same(job)


def fill(folder):
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@contextlib.contextmanager
def outage(cluster, part):
    cluster.stop(part)
    try:
        yield
    finally:
        cluster.start(part)


def test_a_store_that_throttles_denies_resets_and_truncates(drill):
    """All that the job reads and writes goes through a proxy, which spoils every fifth request."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    address = f"?endpoint_override=127.0.0.1:{proxy.port}&scheme=http"
    try:
        job = drill.start("store-spoiled", address=address)
        job.wait_for(lambda: "workers started" in job.output)
        proxy.spoil(FAULTS, every=5)
        job.wait_for_epoch(EPOCHS - 1)
        proxy.calm()
        job.succeed()
        assert all(proxy.met[fault] >= 3 for fault in FAULTS), proxy.met
        assert job.starts() == [0], "nothing was started again"
        drill.check_same(job)
    finally:
        proxy.stop()
