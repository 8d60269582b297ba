"""A run that is asked to stop: SIGINT and SIGTERM, and what they become."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 60.0  # seconds that workers have to write a last checkpoint
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


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals to stop that have come; the program goes on, unless one comes again.

    Raises:
        Stopped: it came again.
    """
    received: list[int] = []

    def receive(signum: int, _: object) -> None:
        if received:
            raise Stopped("stopped at once", signum)
        received.append(signum)

    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield received
        return
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable(function: Callable[[], Any], signals: list[int], ask: Callable[[], bool]) -> Any:
    """Call a function in a thread, for signals to reach us: Ray Train would exit with 0.

    Args:
        function: what may take long.
        signals: those that have come.
        ask: called once when there are any; asks the function to end, and says whether that is
            worth waiting for.

    Raises:
        Stopped: a signal came, and the function did not end within PATIENCE.
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
    while thread.is_alive():
        thread.join(0.2)
        if signals and deadline is None:
            deadline = time.monotonic() + (PATIENCE if ask() else 0)
        if deadline is not None and time.monotonic() > deadline:
            raise Stopped("stopped, without a last checkpoint", signals[0])
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
