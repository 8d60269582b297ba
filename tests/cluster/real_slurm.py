"""A real Slurm on one machine: a controller, and two nodes that are Linux namespaces.

A node has an address, a name, processes, control groups and a disk for temporary files of its own:
what Slurm and Ray take for a machine. From nothing to idle nodes it takes about a second.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

HERE = Path(__file__).parent / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "ip", "unshare", "nsenter")
CONTROLLERS = ("freezer", "cpuset", "memory", "devices", "cpuacct")
BRIDGE = "brslurm"
PREFIX = "/tmp/bcls-"  # of its folder; short, for sockets
NODES = (1, 2)
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")  # after which a job does not come back


def missing() -> str:
    """What keeps Slurm from running here; nothing where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        return (
            f"no {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge iproute2"
        )
    if not all(Path("/sys/fs/cgroup", name).is_dir() for name in CONTROLLERS):
        return "needs control groups v1: on v2, Slurm wants systemd"
    probe = ["unshare", "--net", "--uts", "--pid", "--mount", "--cgroup", "--fork", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return done.stderr.strip()


class Slurm:
    """A cluster of two nodes.

    Args:
        folder: with a short path, for sockets; nodes see it as it is, but for `tmp`, where each
            has a disk of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        configuration = folder / "etc" / "slurm.conf"
        # sbatch hands its whole environment to the job.
        keep = ("RAY_", "MLFLOW_", "AWS_", "SLURM_", "PYTEST_", "BCL_RAY_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(keep)}
        self.environment = kept | {"SLURM_CONF": str(configuration)}

    def start(self) -> None:
        """Start everything; returns when both nodes are idle."""
        for name in ("etc", "log", "run", "spool", "state", "tmp"):
            (self.folder / name).mkdir()
        for file in HERE.glob("*"):
            text = file.read_text().replace("@FOLDER@", str(self.folder))
            (self.folder / "etc" / file.name).write_text(text)
        self._start_munge()
        self._run("ip", "link", "add", BRIDGE, "type", "bridge")
        self._run("ip", "address", "add", "10.88.0.254/24", "dev", BRIDGE)
        self._run("ip", "link", "set", BRIDGE, "up")
        # slurmctld starts only on a host named as in SlurmctldHost.
        controller = f"hostname ctl && exec slurmctld -f {self.environment['SLURM_CONF']}"
        self._run("unshare", "--uts", "sh", "-c", controller)
        for number in NODES:
            self.start_node(number)
        self.wait(self.idle, 60)

    def _start_munge(self) -> None:
        run, key = self.folder / "run", self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": key, "socket": run / "munge.socket", "pid-file": run / "munge.pid"}
        files |= {"log-file": self.folder / "log" / "munge.log", "seed-file": run / "munge.seed"}
        self._run("munged", "--force", *(f"--{name}={file}" for name, file in files.items()))

    def idle(self) -> bool:
        """Whether both nodes are there, and without a job."""
        return set(self._run("sinfo", "-h", "-o", "%T").split()) == {"idle"}

    def start_node(self, number: int) -> None:
        """Start a node, or one that was killed again."""
        self._run("bash", str(HERE / "start-node.sh"), str(self.folder), str(number))

    def kill_node(self, number: int) -> None:
        """End a node as a power cut does: all its processes at once, and no word of it."""
        pid = self._first_process(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not Path(f"/proc/{pid}").exists(), 30)

    def processes(self, number: int, words: str) -> list[int]:
        """Processes of a node whose command line has some words."""
        space = Path(f"/proc/{self._first_process(number)}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                of_node = (process / "ns" / "pid").readlink() == space
                if of_node and words in (process / "cmdline").read_text().replace("\0", " "):
                    found.append(int(process.name))
        return found

    def on_node(self, number: int, *command: str) -> str:
        """Run a command on a node."""
        target = f"--target={self._first_process(number)}"
        return self._run("nsenter", target, "--net", "--pid", "--mount", "--", *command)

    def _first_process(self, number: int) -> int:
        return int((self.folder / "run" / f"node{number}.pid").read_text())

    def sbatch(self, script: Path, *options: str, arguments: tuple[str, ...] = ()) -> int:
        """Submit a script; returns the job's number."""
        return int(self._run("sbatch", "--parsable", *options, str(script), *arguments))

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol` says of a job: JobState, ExitCode, Restarts, NodeList and more."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.scontrol("show", "job", str(number))))

    def scontrol(self, *arguments: str) -> str:
        """Run `scontrol`."""
        return self._run("scontrol", *arguments)

    def signal(self, number: int, name: str) -> None:
        """Send a job's batch script a signal."""
        self._run("scancel", "--batch", f"--signal={name}", str(number))

    def cancel(self, number: int) -> None:
        """End a job at once."""
        self._run("scancel", str(number))

    def run_urgently(self) -> str:
        """Run a job on both nodes that is before all others, to its end."""
        return self._run("srun", "--partition=urgent", "--nodes=2", "--exclusive", "hostname")

    def end_of(self, number: int, seconds: float) -> str:
        """Wait for a job's end; returns its state and exit code: `COMPLETED 0:0`."""
        self.wait(lambda: self.job(number)["JobState"] in ENDS, seconds)
        job = self.job(number)
        return f"{job['JobState']} {job['ExitCode']}"

    @staticmethod
    def wait(condition: Callable[[], object], seconds: float) -> None:
        """Wait until something is so.

        Raises:
            TimeoutError: it has not become so.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s")
            time.sleep(0.5)

    def stop(self) -> None:
        """End everything, and leave nothing behind."""
        for number in NODES:
            with contextlib.suppress(OSError, TimeoutError):
                self.kill_node(number)
        for name in ("slurmctld", "munge"):
            with contextlib.suppress(OSError):
                pid = int((self.folder / "run" / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                self.wait(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 30)
        remove_remains()

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise OSError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout


def remove_remains() -> None:
    """Processes, network and control groups that a test which was killed has left."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(re.search(rf"^(--\S+=)?{PREFIX}\w+(/|$)", word) for word in process.cmdline()):
                process.kill()
    for link in (BRIDGE, *(f"vslurm{number}" for number in NODES)):
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
    for name in CONTROLLERS:
        for number in NODES:
            group = Path("/sys/fs/cgroup", name, f"node{number}")
            for folder in sorted(group.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()


@contextlib.contextmanager
def real_slurm() -> Iterator[Slurm]:
    """A cluster for as long as the block lasts; one at a time on a machine."""
    with Path(f"{PREFIX}lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_remains()
        with tempfile.TemporaryDirectory(
            prefix=Path(PREFIX).name, dir=Path(PREFIX).parent
        ) as folder:
            slurm = Slurm(Path(folder))
            try:
                slurm.start()
                yield slurm
            except BaseException:
                log = slurm.folder / "log" / "slurmctld.log"
                sys.stderr.write(log.read_text()[-5000:] if log.exists() else "no log")
                raise
            finally:
                slurm.stop()
