"""Faults of what trains and reads: processes, nodes, and machines that are taken away."""

import os
import re
import signal
import time

import psutil
import pytest

from bcl_ray.runs.checkpoint import HASH_FILE, is_complete
from bcl_ray.runs.run_folder import LAST
from bcl_ray.storage import files
from tests.faults.conftest import STEPS
from tests.faulty_proxy import FaultyProxy

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_killed_data_task_then_a_killed_worker_then_one_that_hangs_then_a_killed_node(drill):
    # Two clusters on two cores: new workers may wait 30 s for their first batch.
    job = drill.start("killed", "scale.hang_timeout=60")
    job.wait_for(lambda: "workers started" in job.output)
    kill_a_data_task(drill, job)
    job.wait_for_mid_epoch()
    assert job.starts() == [0], "Ray Data runs the task again; training does not notice"

    drill.workers()[1].send_signal(signal.SIGKILL)
    job.wait_for(lambda: len(job.starts()) == 2)
    assert job.starts()[1] > STEPS
    assert "starting again from the last checkpoint (2 more failures allowed)" in job.output

    job.wait_for(lambda: job.last_step() > job.starts()[1])
    assert len(job.starts()) == 2, job.output
    drill.workers()[1].send_signal(signal.SIGSTOP)
    job.wait_for(lambda: len(job.starts()) == 3)
    assert re.search(r"worker \d made no progress for [67]\d s", job.output)
    assert job.starts()[2] > job.starts()[1]

    job.wait_for(lambda: job.last_step() > job.starts()[2])
    drill.cluster.kill_node(drill.node_of_workers())
    job.succeed()
    assert len(job.starts()) == 4
    assert job.starts()[3] > job.starts()[2]
    drill.check_same(job)


def kill_a_data_task(drill, job):
    killed = []

    def killed_one() -> bool:
        for process in drill.processes("ray::MapBatches(_run_task)"):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
            killed.append(process.pid)
        return bool(killed)

    job.wait_for(killed_one)


def test_a_node_that_is_drained_with_notice_loses_no_step(drill):
    job = drill.start("node-drained")
    job.wait_for_mid_epoch()
    node, begun = drill.node_of_workers(), time.monotonic()
    drill.cluster.drain_node(node, 30)
    job.wait_for(lambda: "a node is being taken away" in job.output)
    saved = time.monotonic() - begun
    assert saved < 30, "the state is saved within the notice"
    step = job.last_step()
    job.succeed()
    assert job.starts() == [0, step], "not one step is repeated"
    drill.check_same(job)


def test_workers_that_are_killed_while_they_upload_a_checkpoint_go_on_from_the_one_before(drill):
    """The checkpoint's last file is held up on its way, so that it stays incomplete."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    address = f"?endpoint_override=127.0.0.1:{proxy.port}&scheme=http"
    try:
        job = drill.start("uploading", address=address)
        job.wait_for_mid_epoch()
        proxy.plan("swallow", method="PUT", path=HASH_FILE)
        job.wait_for(lambda: proxy.met["swallow"])
        before, incomplete = job.last_step(), unrecorded(job)
        assert any(not is_complete(files.join(job.uri, name)) for name in incomplete)
        for worker in drill.workers():
            worker.kill()
        job.succeed()
    finally:
        proxy.stop()
    assert job.starts() == [0, before]
    assert unrecorded(job) == set(), "what was incomplete is deleted"
    drill.check_same(job)


def unrecorded(job) -> set[str]:
    """Folders of checkpoints that Ray Train has not recorded, or records no more."""
    names = {name for name in files.list_folders(job.uri) if name.startswith(LAST)}
    return names - job.checkpoints()
