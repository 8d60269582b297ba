"""Processes that outlive the command that starts them, and that later commands can find and end.

A file records the pid and the creation time of each process. If the system has given the pid to
another process since, the times differ, and that process is left alone.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from bcl_ray.machine.messages import last_line

MARK = "BCL_RAY_PROCESS"  # environment variable of every process: the file that records it
BIN = Path(sys.executable).parent  # where pip installs commands
START_SECONDS = 120  # for one part of a cluster to start; a quiet machine needs 10
KILL_SECONDS = 30

# Children of this very process, by pid; each must be waited for, or it stays as a zombie.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


def program(name: str, remedy: str) -> str:
    """Path of a command, beside this Python, on the PATH, or where Debian installs PostgreSQL.

    Raises:
        FileNotFoundError: It is not installed; with the remedy.
    """
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders = os.pathsep.join(map(str, (BIN, *os.get_exec_path(), *debian)))
    found = shutil.which(name, path=folders)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: {remedy}")
    return found


class Processes:
    """Named processes of one folder: run/NAME.json records each, log/NAME.log has its output.

    Args:
        folder: Created with the first process; only its owner may enter it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        user: str | None = None,
    ) -> int:
        """Start a command in the folder, in a session of its own.

        Args:
            environment: All its environment variables.
            user: User that it runs as; by default the user of this process.

        Returns:
            The pid.

        Raises:
            OSError: A process of this name runs, or the command cannot be started.
        """
        if self.alive(name):
            raise OSError(f"{name} runs already (pid {self.pid(name)})")
        for part in ("run", "log"):
            (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 (the commands are ours)
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: str(self._file(name))},
                cwd=self.folder,
                start_new_session=True,
                user=user,
            )
        _children[child.pid] = child
        record = {"pid": child.pid, "created": psutil.Process(child.pid).create_time()}
        self._file(name).write_text(json.dumps(record))
        return child.pid

    def log(self, name: str) -> Path:
        """The file of a process's output."""
        return self.folder / "log" / f"{name}.log"

    def names(self) -> list[str]:
        """Names of all processes that `end` was not called for, dead ones too, oldest first."""
        files = (self.folder / "run").glob("*.json")
        return [file.stem for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]

    def pid(self, name: str) -> int | None:
        """The pid of a process, alive or dead; None if it was never started."""
        record = self._record(name)
        return int(record["pid"]) if record else None

    def created(self, name: str) -> float:
        """When a process was started, in seconds since the epoch; 0 if it never was."""
        record = self._record(name)
        return record["created"] if record else 0

    def alive(self, name: str) -> bool:
        """Whether a process runs."""
        return self._running(name) is not None

    def any_alive(self) -> bool:
        """Whether any of the processes, or any of their descendants, runs."""
        return any(self.tree(name) for name in self.names())

    def tree(self, name: str) -> list[psutil.Process]:
        """A process and its descendants that run, including those whose parents have died."""
        members = {}
        if root := self._running(name):
            members[root.pid] = root
            with contextlib.suppress(psutil.NoSuchProcess):
                members |= {child.pid: child for child in root.children(recursive=True)}
        session = self._session(name)
        for other in psutil.process_iter():
            if other.pid not in members and self._is_orphan(other, name, session):
                members[other.pid] = other
        return [one for one in members.values() if _runs(one) and one.pid != os.getpid()]

    def end(self, *names: str, patience: float = 10) -> None:
        """Ask processes to end (SIGTERM), kill those that do not, and forget them.

        Args:
            patience: Seconds until they and their descendants are killed.
        """
        members = [member for name in names for member in self.tree(name)]
        for root in filter(None, map(self._running, names)):
            with contextlib.suppress(psutil.NoSuchProcess):
                root.terminate()
        _wait(members, patience)
        self.kill(*names)
        for name in names:
            self._file(name).unlink(missing_ok=True)

    def kill(self, *names: str) -> None:
        """Kill processes and their descendants (SIGKILL), as a power cut would; they stay listed.

        Raises:
            OSError: Some still run after 30 s.
        """
        deadline = time.monotonic() + KILL_SECONDS
        while members := [member for name in names for member in self.tree(name)]:
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            _wait(members, 2)
            if time.monotonic() > deadline:
                raise OSError(f"processes {[member.pid for member in members]} cannot be killed")
        for name in names:
            if child := _children.pop(self.pid(name) or 0, None):
                child.wait()

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until a process is ready; `ready` is called again and again.

        Raises:
            OSError: The process has ended, or was not ready in time; with its last line of output.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive(name):
                raise OSError(f"{name} ended: {self.last_line(name)}")
            if time.monotonic() > deadline:
                raise OSError(f"{name} was not ready in {seconds:g} s: {self.last_line(name)}")
            time.sleep(0.1)

    def last_line(self, name: str) -> str:
        """The last line of a process's output, and the file that has all of it."""
        log = self.log(name)
        output = log.read_text(errors="replace") if log.exists() else ""
        return f"{last_line(output, 'it wrote nothing')[:300]} ({log})"

    def _file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.json"

    def _record(self, name: str) -> dict[str, float] | None:
        try:
            record: dict[str, float] = json.loads(self._file(name).read_text())
        except FileNotFoundError:
            return None
        return record

    def _leader(self, name: str) -> psutil.Process | None:
        """The process, running or a zombie; None if it is gone, even if another has its pid now."""
        record = self._record(name)
        if record is None:
            return None
        try:
            process = psutil.Process(int(record["pid"]))
            # Up to 1 s apart: the clock may have been set. No pid is used again within a second.
            same = abs(process.create_time() - record["created"]) < 1
        except psutil.NoSuchProcess:
            return None
        return process if same else None

    def _running(self, name: str) -> psutil.Process | None:
        leader = self._leader(name)
        return leader if leader and _runs(leader) else None

    def _session(self, name: str) -> int | None:
        """The number of a process's session, which is its pid; None if the session is empty.

        The system gives the number to no other process while the session has members. So if
        another process has it now, the session is empty.
        """
        pid = self.pid(name)
        if pid is None or (self._leader(name) is None and psutil.pid_exists(pid)):
            return None
        return pid

    def _is_orphan(self, other: psutil.Process, name: str, session: int | None) -> bool:
        """Whether `other` descends from the process `name`, by its environment or its session."""
        try:
            mark = other.environ().get(MARK)
            # A process that renames itself, as Ray's workers do, may lose its environment.
            return mark == str(self._file(name)) or (
                mark is None and session is not None and os.getsid(other.pid) == session
            )
        except (psutil.Error, OSError):
            return False


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until all have ended; zombies count as ended."""
    deadline = time.monotonic() + seconds
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
