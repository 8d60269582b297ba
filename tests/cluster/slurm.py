"""A stand-in for Slurm that starts real processes on real nodes.

A node is a network, process and mount namespace of this machine, so that it has its own address,
sees its own processes alone, and has its own /tmp/ray: what Ray takes for a machine. That needs
root on Linux; a single node needs nothing. `srun` and `scontrol` are put on the script's path,
and ask the process that runs the test.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

WAIT = 10  # seconds of the script's --wait
SRUN = """#!{python}
import json, os, pathlib, sys, time
folder = pathlib.Path({folder!r})
options = []
while sys.argv[1].startswith("--"):
    options.append(sys.argv.pop(1))
request = {{"options": options, "command": sys.argv[1:], "environment": dict(os.environ)}}
(folder / "step.new").write_text(json.dumps(request))
(folder / "step.new").rename(folder / "step.json")
while not (folder / "step.status").exists():
    time.sleep(0.1)
status = int((folder / "step.status").read_text())
(folder / "step.status").unlink()
sys.exit(status)
"""
SCONTROL = """#!/bin/sh
echo "$@" >>{folder}/scontrol.log
[ "$1 $2" != "show hostnames" ] || echo "$3" | tr , '\\n'
"""


def can_make_nodes() -> bool:
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    probe = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


class Slurm:
    """An allocation of one node, this machine, or of two that it is divided into."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.holders: list[subprocess.Popen] = []
        self.addresses = ["127.0.0.1"]
        self.binaries = folder / "bin"
        self.binaries.mkdir(parents=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            file = self.binaries / name
            file.write_text(text.format(python=sys.executable, folder=str(folder)))
            file.chmod(0o755)
        if nodes == 2:
            self._divide()

    def _divide(self) -> None:
        Path("/tmp/ray").mkdir(exist_ok=True)
        # A first process that ignores SIGCHLD, so that the kernel clears away dead ones.
        mount = "mount -t tmpfs tmpfs /tmp/ray && ip link set lo up && echo ready"
        hold = f"{mount} && exec env --ignore-signal=CHLD sleep 1200"
        space = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        for _ in range(2):
            holder = subprocess.Popen([*space, "sh", "-c", hold], stdout=subprocess.PIPE, text=True)
            assert holder.stdout.readline() == "ready\n"
            self.holders.append(holder)
        first, second = (self._inside(holder) for holder in self.holders)
        link = f"ip link add node0 netns {first} type veth peer name node0 netns {second}"
        subprocess.run(link.split(), check=True)
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        for node, address in enumerate(self.addresses):
            for command in (
                f"ip address add {address}/24 dev node0",
                "ip link set node0 up",
                "ip route add default dev node0",  # Ray asks which address faces the world
            ):
                subprocess.run([*self.enter(node), *command.split()], check=True)

    @staticmethod
    def _inside(holder: subprocess.Popen) -> int:
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        return int(children.read_text().split()[0])

    def enter(self, node: int) -> list[str]:
        """What runs a command on a node."""
        if not self.holders:
            return []
        pid = self._inside(self.holders[node])
        return ["nsenter", f"--target={pid}", "--net", "--pid", "--mount", "--"]

    def run(self, script: Path, *, job: int, then=lambda _: None, seconds: float = 420) -> str:
        """Run a batch script on the first node to its end; returns what it printed.

        Args:
            then: called every 0.2 s with the batch process, as long as it runs.
        """
        environment = os.environ | {
            "PATH": f"{self.binaries}:{os.environ['PATH']}",
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": ",".join(self.addresses),
            "SLURM_NNODES": str(len(self.addresses)),
            "SLURM_CPUS_ON_NODE": "1",
            # Nodes share this machine's name, by which Gloo would find a neighbour.
            **({"GLOO_SOCKET_IFNAME": "node0"} if self.holders else {}),
        }
        environment = {
            key: value
            for key, value in environment.items()
            if not key.startswith(("RAY_", "MLFLOW_", "AWS_"))
        }
        log = self.folder / f"batch-{time.time_ns()}.log"
        with log.open("w") as out:
            batch = subprocess.Popen(
                [*self.enter(0), "bash", script], env=environment, stdout=out, stderr=out
            )
            step, deadline = [], time.monotonic() + seconds
            try:
                while batch.poll() is None and time.monotonic() < deadline:
                    step = self._step(step, out)
                    then(self)
                    time.sleep(0.2)
            finally:
                self._end_step(step)
                batch.kill()
                batch.wait()
        self.status = batch.returncode
        return log.read_text()

    def signal(self, name: str) -> None:
        """Send the batch script a signal, as `--signal=B:...` does."""
        subprocess.run([*self.enter(0), "pkill", f"-{name}", "-f", "^bash .*sbatch$"], check=True)

    def _step(self, step: list[subprocess.Popen], out) -> list[subprocess.Popen]:
        """Start a step that was asked for; end it as --kill-on-bad-exit and --wait say."""
        request = self.folder / "step.json"
        if request.exists():
            asked = json.loads(request.read_text())
            request.unlink()
            self.options = asked["options"]
            return [
                subprocess.Popen(
                    [*self.enter(node), *asked["command"]],
                    env=asked["environment"]
                    | {"SLURM_NODEID": str(node), "BCL_RAY_STEP": str(self.folder)},
                    stdout=out,
                    stderr=out,
                )
                for node in range(len(self.addresses))
            ]
        ended = [process.poll() for process in step]
        if not step or all(status is None for status in ended):
            return step
        bad = [status for status in ended if status]
        self.first_end = getattr(self, "first_end", None) or time.monotonic()
        late = time.monotonic() - self.first_end > WAIT
        if None in ended and not bad and not late:
            return step
        self._end_step(step)
        self.first_end = None
        (self.folder / "status.new").write_text(str(max(bad, default=0)))
        (self.folder / "status.new").rename(self.folder / "step.status")
        return []

    def _end_step(self, step: list[subprocess.Popen]) -> None:
        """End all processes of the step, its daemons too, as Slurm does by its control group."""
        mark = f"BCL_RAY_STEP={self.folder}\0".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        for process in step:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the nodes, and with them everything on them."""
        for holder in self.holders:
            holder.kill()
            holder.wait()
