"""Processes that outlive the command that started them, found again and ended by who they are.

A process is remembered by its pid and the time of its creation, so that a pid that the system
has given to somebody else is never killed.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "BCL_RAY_PROCESS"  # in the environment of all that we start: the file that remembers it
BIN = Path(sys.executable).parent  # where pip put the commands of what it installed
_children: dict[int, "subprocess.Popen[bytes]"] = {}  # our own must be waited for, else zombies


def program(name: str, remedy: str) -> str:
    """Path of a command, beside this Python or on the PATH.

    Raises:
        FileNotFoundError: it is not installed; with the remedy.
    """
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # not on the PATH
    for folder in (BIN, *map(Path, os.get_exec_path()), *debian):
        if (folder / name).is_file() and os.access(folder / name, os.X_OK):
            return str(folder / name)
    raise FileNotFoundError(f"{name} is not installed: {remedy}")


class Processes:
    """The named processes of one folder: run/NAME.json remembers each, log/NAME.log is its output.

    Args:
        folder: made when it is first needed, for its owner only.
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
        """Start a command in a session of its own, in the folder; returns its pid.

        Args:
            user: whom it runs as; this process's where it is not given.

        Raises:
            OSError: it runs already, or cannot be started.
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
        """All that were started and not ended since, alive or not, the oldest first."""
        files = (self.folder / "run").glob("*.json")
        return [file.stem for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]

    def pid(self, name: str) -> int | None:
        """Its pid, dead or alive; None where it was never started."""
        record = self._record(name)
        return int(record["pid"]) if record else None

    def created(self, name: str) -> float:
        """When it was started, seconds since the epoch; 0 where it never was."""
        record = self._record(name)
        return record["created"] if record else 0

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        return self._root(name) is not None

    def any_alive(self) -> bool:
        """Whether one of them, or what one of them has left behind, runs."""
        return any(self.tree(name) for name in self.names())

    def tree(self, name: str) -> list[psutil.Process]:
        """The process and all that it started, also where what stood between has died."""
        root, pid = self._root(name), self.pid(name)
        # A session keeps its number from being a pid again, until all of it has ended.
        ours = pid is not None and (self._leader(name) is not None or not psutil.pid_exists(pid))
        found = {} if root is None else {root.pid: root}
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in root.children(recursive=True)} if root else {}
        for other in psutil.process_iter():
            if other.pid not in found and self._is_orphan(other, name, pid if ours else None):
                found[other.pid] = other
        return [p for p in found.values() if _runs(p) and p.pid != os.getpid()]

    def end(self, *names: str, patience: float = 10) -> None:
        """Ask them to end (SIGTERM), and kill what is there of them after `patience` seconds."""
        members = [member for name in names for member in self.tree(name)]
        for root in filter(None, map(self._root, names)):
            with contextlib.suppress(psutil.NoSuchProcess):
                root.terminate()
        _wait(members, patience)
        self.kill(*names)
        for name in names:
            self._file(name).unlink(missing_ok=True)

    def kill(self, *names: str) -> None:
        """Kill them and all that they started (SIGKILL), as a power cut would; they stay listed.

        Raises:
            OSError: something is still there after 30 s.
        """
        deadline = time.monotonic() + 30
        while members := [member for name in names for member in self.tree(name)]:
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            _wait(members, 2)
            if time.monotonic() > deadline:
                raise OSError(f"processes {[m.pid for m in members]} cannot be killed")
        for name in names:
            if child := _children.pop(self.pid(name) or 0, None):
                child.wait()

    def wait(self, name: str, ready: Iterator[bool], seconds: float) -> None:
        """Wait until `ready` yields True.

        Raises:
            OSError: the process has ended, or was not ready in time; with its last words.
        """
        deadline = time.monotonic() + seconds
        for is_ready in ready:
            if is_ready:
                return
            if not self.alive(name):
                raise OSError(f"{name} ended: {self.last_words(name)}")
            if time.monotonic() > deadline:
                raise OSError(f"{name} was not ready in {seconds:g} s: {self.last_words(name)}")
            time.sleep(0.05)

    def last_words(self, name: str) -> str:
        """The last line that it wrote, and where to find the rest."""
        log = self.log(name)
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        said = [line.strip() for line in lines if line.strip()] or ["it wrote nothing"]
        return f"{said[-1][:300]} ({log})"

    def _file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.json"

    def _record(self, name: str) -> dict[str, float] | None:
        try:
            record: dict[str, float] = json.loads(self._file(name).read_text())
        except FileNotFoundError:
            return None
        return record

    def _leader(self, name: str) -> psutil.Process | None:
        """The process, also as a zombie; none where it is gone or its pid is somebody else's."""
        record = self._record(name)
        try:
            found = psutil.Process(int(record["pid"])) if record else None
            # The clock may be set while it runs; a pid does not come round again in a second.
            same = record and found and abs(found.create_time() - record["created"]) < 1
        except psutil.NoSuchProcess:
            return None
        return found if same else None

    def _root(self, name: str) -> psutil.Process | None:
        leader = self._leader(name)
        return leader if leader and _runs(leader) else None

    def _is_orphan(self, other: psutil.Process, name: str, session: int | None) -> bool:
        try:
            mark = other.environ().get(MARK)
            # A process that renames itself, as Ray's workers do, may lose its environment.
            return mark == str(self._file(name)) or (
                mark is None and session is not None and os.getsid(other.pid) == session
            )
        except (psutil.Error, OSError):
            return False


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until all have ended; a zombie has, also where nobody collects it."""
    deadline = time.monotonic() + seconds
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
