"""A run that is asked to stop: SIGINT and SIGTERM, or a caller; and what that becomes."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 60.0  # seconds that workers have to write a last checkpoint
ENDING = 20.0  # seconds that a function has to end which was made to
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop.

    Args:
        text: what became of it.
        signum: the signal that asked for it.
    """

    def __init__(self, text: str, signum: int) -> None:
        super().__init__(text)
        self.signum = signum


class StopRequest:
    """Whether a run is asked to stop, and why; the first reason counts."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signum: int = signal.SIGINT

    def stop(self, reason: str, signum: int = signal.SIGINT) -> None:
        """Ask for it, from any thread."""
        if self.reason is None:
            self.signum = signum
            self.reason = reason


@contextlib.contextmanager
def stop_signals(stop_request: StopRequest | None = None) -> Iterator[StopRequest]:
    """A request to stop, which SIGINT and SIGTERM make while the block lasts.

    Args:
        stop_request: one that others make, too; None: a new one.

    Raises:
        Stopped: a second signal came; the first lets the program go on.
    """
    stop_request = StopRequest() if stop_request is None else stop_request

    def receive(signum: int, _: object) -> None:
        if stop_request.reason is not None:
            raise Stopped("stopped at once", signum)
        stop_request.stop(signal.Signals(signum).name, signum)

    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield stop_request
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield stop_request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable(
    function: Callable[[], Any],
    stop_request: StopRequest,
    ask: Callable[[], bool],
    *,
    end: Callable[[], None],
    lost: Callable[[], BaseException | None],
) -> Any:
    """Call a function in a thread, for signals to reach us: Ray Train would exit with 0.

    The thread has ended when this returns or raises, if `end` can make it.

    Args:
        function: what may take long.
        stop_request: when to stop it.
        ask: called once when a stop is requested; asks the function to end, says whether that is
            worth waiting for.
        end: called where the function is not waited for any longer; makes it end at once.
        lost: what forbids to go on, once there is something; it is raised.

    Raises:
        Stopped: a stop was requested, and the function did not end within PATIENCE.
    """
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, name="trainer", daemon=True)
    thread.start()
    deadline = None
    try:
        while thread.is_alive():
            thread.join(0.2)
            if (error := lost()) is not None:
                raise error
            if stop_request.reason is not None and deadline is None:
                deadline = time.monotonic() + (PATIENCE if ask() else 0)
            if deadline is not None and time.monotonic() > deadline:
                raise Stopped("stopped, without a last checkpoint", stop_request.signum)
    except BaseException:  # of a second signal, too
        end()
        thread.join(ENDING)
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
