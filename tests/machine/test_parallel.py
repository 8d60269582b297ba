"""A function applied to items in several processes."""

import functools
import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.machine.parallel import map_here, run_in_processes


def refuse(item):
    raise UserError(f"item {item} is refused")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_item_is_done_once_and_results_say_which(count):
    double = functools.partial(operator.mul, 2)
    with run_in_processes(count) as run:
        for _ in range(2):  # processes stay for the next items
            assert dict(run(double, range(20))) == {item: 2 * item for item in range(20)}
        assert list(run(double, [])) == []


def test_processes_are_others_and_end_with_the_block():
    with run_in_processes(2) as run:
        found = {pid for _, pid in run(run_slowly, range(6))}
    assert len(found) == 2
    assert os.getpid() not in found
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def run_slowly(_):
    time.sleep(0.1)
    return os.getpid()


def test_errors_of_the_function_are_raised_here():
    for run in (map_here, None):
        with run_in_processes(2) as processes, pytest.raises(UserError, match="item 3 is refused"):
            list((run or processes)(refuse, [3]))


def test_a_killed_process_is_an_error_that_says_so():
    kill = functools.partial(signal.raise_signal, signal.SIGKILL)
    with run_in_processes(2) as run, pytest.raises(FailedError, match=r"ended while .*status -9"):
        list(run(discard_argument, [kill]))


def discard_argument(function):
    function()


def test_what_cannot_be_pickled_is_named():
    with run_in_processes(2) as run, pytest.raises(UserError, match=r"not a generator; or use one"):
        list(run(list, [(item for item in range(3))]))


SCRIPT = """
from bcl_ray.machine.parallel import run_in_processes
print("once")
with run_in_processes(2) as run:
    print(sorted(run(abs, [-1, -2])))
"""


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["once", "[(0, 1), (1, 2)]"]
