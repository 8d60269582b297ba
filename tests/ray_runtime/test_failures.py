"""Which failures lead to a restart, and what the user is told about them."""

import pytest

pytest.importorskip("ray")
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from bcl_ray.ray_runtime.elastic import MissingResourcesError
from bcl_ray.ray_runtime.failures import FailurePolicy, RestartError, find_cause
from bcl_ray.storage.fence import LeaseLostError


@pytest.fixture
def failures():
    messages: list[str] = []
    return FailurePolicy(FailureConfig(max_failures=1), messages.append), messages


def failed(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("text", {1: UserExceptionWithTraceback(error, "traceback")})


def test_failures_are_counted_and_reported_until_none_is_left(failures):
    policy, messages = failures
    assert policy.make_decision(failed(ValueError("x"))) == FailureDecision.RETRY
    assert messages == [
        "worker 1 failed (ValueError: x): starting again from the last checkpoint "
        "(0 more failures allowed)"
    ]
    assert policy.make_decision(failed(ValueError("x"))) == FailureDecision.RAISE


def test_a_dead_worker_is_reported_as_the_cause_not_the_errors_of_the_others(failures):
    policy, messages = failures
    peer = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "traceback")
    dead = WorkerHealthCheckFailedError("failed", RayActorError())
    policy.make_decision(WorkerGroupError("text", {0: peer, 1: dead}))
    assert messages[0].startswith("worker 1 died: starting again")


def test_workers_that_saved_their_state_first_cost_no_failure(failures):
    policy, messages = failures
    restart = failed(RestartError("a node is being taken away: everything up to step 7 is saved"))
    for _ in range(5):
        assert policy.make_decision(restart) == FailureDecision.RETRY
    assert policy.make_decision(failed(ValueError("x"))) == FailureDecision.RETRY
    assert messages[0] == (
        "a node is being taken away: everything up to step 7 is saved; starting again on the "
        "available nodes"
    )


def test_the_cause_is_found_in_workers_and_in_the_controller():
    lost = LeaseLostError("another driver has the run")
    assert find_cause(failed(lost), LeaseLostError) is lost
    assert find_cause(ControllerError(lost), LeaseLostError) is lost
    assert find_cause(failed(ValueError("x")), LeaseLostError) is None


def test_workers_that_do_not_start_are_reported_once(failures):
    policy, messages = failures
    cause = "One of the worker actors failed to initialize:\n  File x\nOSError: No space left\n"
    for _ in range(9):
        error = ControllerError(WorkerGroupStartupFailedError(cause))
        assert policy.make_decision(error) == FailureDecision.RETRY
    assert messages == ["workers did not start (OSError: No space left): trying again"]


def test_waiting_too_long_leads_to_no_restart(failures):
    policy, _ = failures
    error = ControllerError(MissingResourcesError("no workers after 5 s"))
    assert policy.make_decision(error) == FailureDecision.RAISE
