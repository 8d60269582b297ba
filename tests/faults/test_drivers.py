"""Faults of a job's driver and of the head that it runs on."""

import re
import signal
import subprocess
import sys

import pytest

from bcl_ray.storage import files
from tests.faults.conftest import STEPS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_job_that_is_stopped_then_a_killed_driver_then_sigterm_then_a_damaged_checkpoint(drill):
    """One run, sent four times."""
    job = drill.start("drivers")
    job.wait_for(job.last_step)
    stopped = stop(drill, job)

    job = drill.start("drivers")
    job.wait_for(lambda: job.last_step() > stopped)
    assert job.starts() == [stopped], "not one step is repeated"
    drill.driver_of(job).kill()
    assert job.wait() != 0
    killed = job.last_step()

    job = drill.start("drivers")
    job.wait_for(lambda: job.last_step() > killed)
    assert job.starts() == [killed], "it went on from the last checkpoint"
    drill.driver_of(job).send_signal(signal.SIGTERM)
    assert job.wait() != 0
    terminated, last = job.last_step(), job.last_checkpoint()
    assert f"stopped at step {terminated}; go on with: bcl-ray submit train --resume" in job.output
    assert drill.tracked_status(job) == "KILLED"
    file = files.join(job.uri, last, "state.pt")
    files.write_bytes(file, files.read_bytes(file)[:1000])

    job = drill.start("drivers")
    job.succeed()
    assert f"{last}/state.pt is damaged" in job.output
    assert "going on from the checkpoint before" in job.output
    assert killed < job.starts()[0] < terminated
    drill.check_same(job)


def stop(drill, job) -> int:
    """Detach with Ctrl-C, and end the job with `jobs stop`; the step that it has got to."""
    job.process.send_signal(signal.SIGINT)
    assert job.wait(30) == 130
    told = f"detached, and the job goes on; follow it with `bcl-ray jobs logs {job.id}"
    assert told in job.output
    said = command("jobs", "stop", job.id)
    assert said.startswith("SIGINT sent; the job has 90 s to end\n")
    assert f"stopped at step {job.last_step()}; go on with: bcl-ray submit train --resume" in said
    assert re.search(rf"job {job.id} stopped after \d+ s\n", said)
    assert said.endswith(f"go on with: bcl-ray submit train --resume {job.uri}\n")
    assert drill.tracked_status(job) == "KILLED"
    assert not drill.workers(), "resources are free again"
    return job.last_step()


def test_a_head_that_is_stopped_and_started_again(drill):
    """The driver dies with the head; nodes wait for it, and the job is sent again."""
    nodes = drill.cluster.nodes()
    job = drill.start("head-restarted")
    job.wait_for_mid_epoch()
    drill.cluster.stop("head")
    drill.cluster.start("head")
    assert job.wait() != 0
    again = drill.start("head-restarted")
    again.succeed()
    assert again.starts()[0] > STEPS
    alive = drill.cluster.nodes()
    assert {name: alive[name] for name in drill.names} == {n: nodes[n] for n in drill.names}
    drill.check_same(again)


def command(*words: str) -> str:
    """What a command of the command line prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bcl_ray", *words], check=True, capture_output=True, text=True
    )
    return done.stdout
