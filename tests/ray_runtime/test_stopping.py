"""A stopped function has ended when the call of `run_stoppable` ends."""

import threading

import pytest

from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, run_stoppable


class Work:
    """A function that runs until it is terminated."""

    def __init__(self):
        self.asked, self._ended = 0, threading.Event()

    def run(self):
        self._ended.wait(60)
        return "done"

    def ask_to_stop(self):
        self.asked += 1
        return False

    def terminate(self):
        self._ended.set()


def nothing():
    """No lease is lost."""


def trainers():
    return [thread for thread in threading.enumerate() if thread.name == "trainer"]


def test_the_function_has_ended_after_a_stop_without_a_checkpoint():
    work, stop_request = Work(), StopRequest()
    stop_request.stop("by hand", 15)
    with pytest.raises(Stopped, match="stopped, without a last checkpoint") as raised:
        run_stoppable(
            work.run, stop_request, work.ask_to_stop, terminate=work.terminate, failure=nothing
        )
    assert raised.value.signum == 15
    assert work.asked == 1
    assert trainers() == []


def test_a_lost_lease_ends_the_function_without_a_last_checkpoint():
    work = Work()
    with pytest.raises(OSError, match="another has it"):
        run_stoppable(
            work.run,
            StopRequest(),
            work.ask_to_stop,
            terminate=work.terminate,
            failure=lambda: OSError("another has it"),
        )
    assert work.asked == 0
    assert trainers() == []


def test_the_functions_result_or_error_is_passed_on():
    def fail():
        raise KeyError("x")

    assert run_stoppable(lambda: 3, StopRequest(), nothing, terminate=nothing, failure=nothing) == 3
    with pytest.raises(KeyError):
        run_stoppable(fail, StopRequest(), nothing, terminate=nothing, failure=nothing)
