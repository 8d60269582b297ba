"""Two drivers of one run: a frozen one that is replaced, and a job that is sent twice."""

import signal
import time

import pytest

from bcl_ray.storage import files
from bcl_ray.storage.lease import RENEWAL_SECONDS
from bcl_ray.storage.lease_record import LEASE_FILE, LeaseRecord, parse_record
from bcl_ray.storage.versioned_file import versioned_file

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_frozen_driver_is_replaced_and_ends_itself_and_a_job_sent_twice_trains_once(drill):
    """One run, sent three times; its third driver waits until the second is asked to stop."""
    first = drill.start("twice")
    first.wait_for(first.last_step)
    frozen = drill.frozen(
        drill.driver_of(first), *drill.processes("ray::Controller"), *drill.workers()
    )
    step = first.last_step()

    second = drill.start("twice")
    second.wait_for(lambda: f"run '{second.name}' is in use by job {first.id}, " in second.output)
    assert "waiting until it has ended" in second.output
    second.wait_for(lambda: f"was left by job {first.id}, " in second.output)
    assert holder(second).number == 2
    second.wait_for(lambda: second.last_step() > step)
    assert second.starts() == [step], "it went on from the last checkpoint"
    held_up = drill.frozen(*(p for p in drill.workers() if p not in frozen))
    for process in frozen:
        process.send_signal(signal.SIGCONT)
    assert first.wait(120) != 0
    assert "this driver, number 1, gave no sign of life for a while, and job " in first.output
    assert "has it now as number 2: it ends, and changes nothing more in" in first.output
    gone_by(frozen, time.monotonic() + 2 * RENEWAL_SECONDS)
    assert second.checkpoints() <= set(files.list_folders(second.uri)), "it deleted nothing"
    assert second.last_step() > step, "it noted nothing"
    assert drill.tracked_status(second) == "RUNNING", "nor did it end the MLflow run"

    driver = drill.driver_of(second)
    third = drill.start("twice")
    third.wait_for(lambda: f"run '{third.name}' is in use by job {second.id}, " in third.output)
    drill.thaw()
    assert held_up
    driver.send_signal(signal.SIGTERM)
    assert second.wait() != 0
    stopped = second.last_step()
    assert f"stopped at step {stopped}; go on with:" in second.output
    third.succeed()
    assert "was left by" not in third.output, "it was given back"
    assert third.starts() == [stopped]
    assert holder(third).number == 3
    drill.check_same(third)


def holder(job) -> LeaseRecord:
    """Who has a job's run, or had it last."""
    uri = files.join(job.uri, LEASE_FILE)
    return parse_record(versioned_file(uri).read(), uri)


def gone_by(processes, deadline) -> None:
    """Fails unless all of them have ended by then."""
    while any(process.is_running() for process in processes):
        assert time.monotonic() < deadline, [p for p in processes if p.is_running()]
        time.sleep(0.2)
