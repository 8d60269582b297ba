"""Faults of a job's driver and of the head that it runs on."""

import signal

import pytest

from tests.faults.conftest import STEPS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_killed_driver(drill):
    job = drill.start("driver-killed")
    job.wait_for_mid_epoch()
    drill.driver_of(job).kill()
    assert job.wait() != 0
    step = job.last_step()
    again = drill.start("driver-killed")
    again.succeed()
    assert again.starts() == [step]
    drill.check_same(again)


def test_sigterm_to_a_job_writes_a_last_checkpoint(drill):
    job = drill.start("terminated")
    job.wait_for_mid_epoch()
    drill.driver_of(job).send_signal(signal.SIGTERM)
    assert job.wait() != 0
    step = job.last_step()
    assert f"stopped at step {step}; go on with: bcl-ray train --resume" in job.output
    assert drill.tracked_status(job) == "KILLED"
    again = drill.start("terminated")
    again.succeed()
    assert again.starts() == [step], "not one step is repeated"
    drill.check_same(again)


def test_a_head_that_is_stopped_and_started_again(drill):
    """The driver dies with the head; nodes wait for it, and the job is sent again."""
    nodes = drill.cluster.nodes()
    job = drill.start("head-restarted")
    job.wait_for_mid_epoch()
    drill.cluster.kill_head()
    drill.cluster.start_head()
    job.wait()
    again = drill.start("head-restarted")
    again.succeed()
    assert again.starts()[0] > STEPS
    alive = drill.cluster.nodes()
    assert {name: alive[name] for name in drill.names} == {n: nodes[n] for n in drill.names}
    drill.check_same(again)
