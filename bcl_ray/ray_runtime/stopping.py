"""Requests to stop a run, from signals or from a caller, and their execution."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

CHECKPOINT_SECONDS = 60.0  # time that workers get to write a last checkpoint
TERMINATION_SECONDS = 20.0  # time that a terminated function gets to end
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run that ended because a stop was requested.

    Args:
        text: How it ended, for the user.
        signum: The signal that requested the stop.
    """

    def __init__(self, text: str, signum: int) -> None:
        super().__init__(text)
        self.signum = signum


class StopRequest:
    """Whether a run is to stop, and why; the first reason counts."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signum: int = signal.SIGINT

    def stop(self, reason: str, signum: int = signal.SIGINT) -> None:
        """Request the stop, from any thread."""
        if self.reason is None:
            self.signum = signum
            self.reason = reason


@contextlib.contextmanager
def stop_signals(stop_request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Let SIGINT and SIGTERM request a stop while the block lasts.

    Outside the main thread, where Python allows no signal handlers, only callers can request one.

    Args:
        stop_request: A request that callers can also make; None: a new one.

    Raises:
        Stopped: A second signal came. The first only requests the stop.
    """
    stop_request = StopRequest() if stop_request is None else stop_request

    def receive(signum: int, _: object) -> None:
        if stop_request.reason is not None:
            raise Stopped("stopped at once", signum)
        stop_request.stop(signal.Signals(signum).name, signum)

    if threading.current_thread() is not threading.main_thread():
        yield stop_request
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield stop_request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stoppable(
    function: Callable[[], Any],
    stop_request: StopRequest,
    ask_to_stop: Callable[[], bool],
    *,
    terminate: Callable[[], None],
    failure: Callable[[], BaseException | None],
) -> Any:
    """Call a function in a thread, so that this thread can stop it.

    Ray Train's own handling of signals would exit with status 0. When this returns or raises, the
    thread has ended, provided that `terminate` can end it.

    Args:
        function: A function that may take long; its result is returned.
        stop_request: When to stop.
        ask_to_stop: Called once after a stop is requested. Asks the function to end, and returns
            whether to wait for that.
        terminate: Makes the function end at once, if it is no longer waited for.
        failure: An error that forbids going on, such as a lost lease, or None; it is raised.

    Raises:
        Stopped: A stop was requested, and the function did not end in CHECKPOINT_SECONDS.
    """
    outcome = Future[Any]()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=call, name="trainer", daemon=True)
    thread.start()
    deadline = None
    try:
        while thread.is_alive():
            thread.join(0.2)
            if (error := failure()) is not None:
                raise error
            if stop_request.reason is not None and deadline is None:
                deadline = time.monotonic() + (CHECKPOINT_SECONDS if ask_to_stop() else 0)
            if deadline is not None and time.monotonic() > deadline:
                raise Stopped("stopped, without a last checkpoint", stop_request.signum)
    except BaseException:  # also a second signal's
        terminate()
        thread.join(TERMINATION_SECONDS)
        raise
    # It ended by itself, perhaps because it was asked to.
    return outcome.result()
