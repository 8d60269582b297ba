"""Processes that outlive who started them: whose they are, and that all of them end."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from bcl_ray.ops.local.ports import check_free
from bcl_ray.ops.local.processes import MARK, Processes, program
from tests.s3_servers import free_block

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); {}"
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def processes(tmp_path):
    found = Processes(tmp_path / "processes")
    yield found
    found.kill(*found.names())


@pytest.fixture
def other():
    """A process of somebody else; the leader of its session, as ours are."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as process:
        yield process
        process.kill()


def start(processes, name, code=SLEEP):
    return processes.start(name, [sys.executable, "-c", code], dict(os.environ))


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_outlives_who_started_it_and_is_found_again(processes):
    code = (
        "import os, sys; from pathlib import Path; "
        "from bcl_ray.ops.local.processes import Processes;"
        f"Processes(Path({str(processes.folder)!r}))"
        f".start('one', [sys.executable, '-c', {SLEEP!r}], dict(os.environ)); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert processes.alive("one")
    assert os.getsid(processes.pid("one")) == processes.pid("one")
    processes.end("one")
    assert not processes.alive("one")
    assert processes.names() == []


def test_a_pid_that_another_process_has_now_is_never_killed(processes, other):
    start(processes, "one")
    processes.kill("one")
    file = processes.folder / "run" / "one.json"
    record = json.loads(file.read_text())  # as if pids had come round in a minute
    file.write_text(json.dumps({"pid": other.pid, "created": record["created"] - 60}))
    assert not processes.alive("one")
    processes.end("one")
    assert other.poll() is None


def test_the_whole_tree_is_killed(processes):
    start(processes, "one", CHILD.format(SLEEP, SLEEP))
    wait_until(lambda: len(processes.tree("one")) == 2)
    tree = processes.tree("one")
    processes.kill("one")
    wait_until(lambda: not any(p.is_running() and p.status() != "zombie" for p in tree))
    assert processes.names() == ["one"]


def test_descendants_of_a_dead_process_are_found_and_killed(processes):
    start(processes, "one", CHILD.format(SLEEP, "sys.exit()"))
    wait_until(lambda: not processes.alive("one") and len(processes.tree("one")) == 1)
    assert processes.any_alive()
    processes.kill("one")
    assert not processes.any_alive()


def test_a_process_that_hides_its_environment_is_found_by_its_session(processes):
    code = "import os; os.execve('/bin/sleep', ['sleep', '600'], {})"
    start(processes, "one", CHILD.format(code, "time.sleep(1); sys.exit()"))
    wait_until(lambda: not processes.alive("one"))
    (left,) = processes.tree("one")
    assert MARK not in left.environ()
    processes.kill("one")
    assert processes.tree("one") == []


def test_a_process_that_ignores_sigterm_is_killed(processes):
    start(processes, "one", f"import signal; signal.signal(15, signal.SIG_IGN); print(1); {SLEEP}")
    wait_until(lambda: processes.log("one").stat().st_size >= 0 and processes.alive("one"))
    time.sleep(0.5)
    processes.end("one", patience=0.3)
    assert not processes.any_alive()


def test_the_same_name_runs_once(processes):
    pid = start(processes, "one")
    with pytest.raises(OSError, match=rf"one runs already \(pid {pid}\)"):
        start(processes, "one")


def test_a_process_that_ends_too_early_is_reported_with_its_last_line(processes):
    start(processes, "one", "import sys; sys.exit('no licence')")
    with pytest.raises(OSError, match=rf"one ended: no licence \({processes.log('one')}\)"):
        processes.wait("one", lambda: False, seconds=20)


def test_a_process_that_is_never_ready_is_an_error(processes):
    start(processes, "one", f"print('thinking', flush=True); {SLEEP}")
    with pytest.raises(OSError, match=r"one was not ready in 0\.5 s"):
        processes.wait("one", lambda: False, seconds=0.5)


def test_a_missing_program_comes_with_its_remedy():
    with pytest.raises(FileNotFoundError, match="nonesuch is not installed: get it there"):
        program("nonesuch", "get it there")


def test_a_port_in_use_is_refused_with_the_process_that_uses_it():
    first = free_block(2)
    second = first + 1
    check_free({"a": first, "b": second})
    with socket.socket() as held:
        held.bind(("127.0.0.1", first))
        held.listen()
        with pytest.raises(OSError, match="ports in use") as refused:
            check_free({"a": first, "b": second})
    holder = psutil.Process().name()
    assert f"{first} (a), by {holder} (pid {os.getpid()}); stop" in str(refused.value)
