"""Waits that end: for a function's value, and for a server."""

import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

CONNECT_SECONDS = 1.0

T = TypeVar("T")


def call_with_limit(seconds: float, function: Callable[[], T]) -> T:
    """The function's value or error; a function that takes longer is left to itself.

    Raises:
        TimeoutError: It takes longer.
    """
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["value"] = function()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(
            f"no answer within {seconds:g} s: is it overloaded, or its network blocked?"
        )
    value: T = outcome["value"]
    return value


def answers(host: str, port: int) -> bool:
    """Whether a server accepts connections."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
