"""A function applied to many items: in this process, or in several processes of this machine.

The processes are started by a command of their own, and not by `multiprocessing`, which would run
the caller's script again in each of them if it has no `if __name__ == "__main__"`.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from bcl_ray.machine.errors import FailedError, UserError

# Applies a function to items; yields the position of an item and its result, in any order.
ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]
Progress = Callable[[str, int, int], None]  # ("reading train", rows done, rows in total)


def no_progress(stage: str, done: int, rows: int) -> None:
    """A `Progress` that shows nothing."""


def map_here(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Apply the function in this process; a `ParallelMap`."""
    for position, item in enumerate(items):
        yield position, function(item)


@contextlib.contextmanager
def run_in_processes(count: int) -> Iterator[ParallelMap]:
    """A `ParallelMap` with several processes, which start when needed and end with the block.

    Functions, items and results are pickled. An error of the function is raised here. Items are
    made when a process is free for them, so that they need not all be in memory.

    Args:
        count: Number of processes, at least 1; with 1, all is done in this process.

    Raises:
        FailedError: A process was killed.
        ValueError: An item cannot be pickled.
    """
    if count == 1:
        yield map_here
        return
    with contextlib.ExitStack() as stack:
        idle: list[_Process] = []

        def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
            waiting, busy = enumerate(items), dict[Connection, tuple[_Process, int]]()
            while True:
                while len(busy) < count and (entry := next(waiting, None)) is not None:
                    process = idle.pop() if idle else stack.enter_context(_Process())
                    process.send((function, entry[1]))
                    busy[process.pipe] = process, entry[0]
                if not busy:
                    return
                for pipe in wait(list(busy)):
                    process, position = busy.pop(pipe)  # type: ignore[call-overload]
                    result = process.receive()
                    idle.append(process)
                    yield position, result

        yield run


class _Process:
    """A process that applies functions to items, until this object is closed."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        command = f"from {__name__} import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen(  # noqa: S603  this Python, and nothing of the user's
            [sys.executable, "-c", command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is this process's to handle
        )
        theirs.close()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.wait()

    def send(self, work: tuple[Callable[[Any], Any], Any]) -> None:
        try:
            content = pickle.dumps(work)
        except Exception as error:  # pickle raises several kinds
            raise UserError(
                f"work cannot be sent to another process ({error}): a source's `read` must return "
                "an iterable that can be pickled, not a generator; or use one CPU (--cpus 1)"
            ) from error
        with contextlib.suppress(BrokenPipeError):  # `receive` reports it
            self.pipe.send_bytes(content)

    def receive(self) -> Any:
        try:
            answer = self.pipe.recv_bytes()
        except (EOFError, ConnectionError):
            raise FailedError(
                f"a process ended while it was at work (status {self._process.wait()}), perhaps "
                "for lack of memory: run again, with a lower --cpus; what is done stays"
            ) from None
        return result_of(answer)


def serve(handle: int) -> None:
    """Work for the process that has started this one, until it closes the pipe or is gone.

    Args:
        handle: File descriptor of this end of the pipe.
    """
    pipe = Connection(handle)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            pipe.send_bytes(answer_to(pipe.recv_bytes()))


def answer_to(work: bytes) -> bytes:
    """Apply a function to an item, both in one pickle; what comes out is for `result_of`."""
    try:
        function, item = pickle.loads(work)  # noqa: S301  our own bytes
        return pickle.dumps((True, function(item)))
    except Exception as error:
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)  # noqa: S301  some errors can be pickled, but not unpickled
        except Exception:
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return answer


def result_of(answer: bytes) -> Any:
    """The function's result; its error is raised."""
    succeeded, result = pickle.loads(answer)  # noqa: S301  our own bytes
    if not succeeded:
        raise result
    return result
