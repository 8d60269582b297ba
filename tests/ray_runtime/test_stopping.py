"""What is asked to stop has ended when its caller goes on."""

import threading

import pytest

from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, run_stoppable


class Work:
    """A function that goes on until it is made to end."""

    def __init__(self):
        self.asked, self._ended = 0, threading.Event()

    def run(self):
        self._ended.wait(60)
        return "done"

    def ask(self):
        self.asked += 1
        return False

    def end(self):
        self._ended.set()


def nothing():
    """No lease is lost."""


def trainers():
    return [thread for thread in threading.enumerate() if thread.name == "trainer"]


def test_nothing_goes_on_after_a_stop_that_was_not_waited_for():
    work, stop_request = Work(), StopRequest()
    stop_request.stop("by hand", 15)
    with pytest.raises(Stopped, match="stopped, without a last checkpoint") as raised:
        run_stoppable(work.run, stop_request, work.ask, terminate=work.end, failure=nothing)
    assert raised.value.signum == 15
    assert work.asked == 1
    assert trainers() == []


def test_a_lost_lease_ends_it_and_asks_for_no_last_checkpoint():
    work = Work()
    with pytest.raises(OSError, match="another has it"):
        run_stoppable(
            work.run,
            StopRequest(),
            work.ask,
            terminate=work.end,
            failure=lambda: OSError("another has it"),
        )
    assert work.asked == 0
    assert trainers() == []


def test_what_ends_by_itself_returns_or_raises_as_it_would():
    def fail():
        raise KeyError("x")

    assert run_stoppable(lambda: 3, StopRequest(), nothing, terminate=nothing, failure=nothing) == 3
    with pytest.raises(KeyError):
        run_stoppable(fail, StopRequest(), nothing, terminate=nothing, failure=nothing)
