"""What nodes do while a run trains: CPU, memory, disks, network and GPUs.

A thread on each node looks every few seconds and adds up; an epoch takes the means. CPU and memory
are those of the container, of what it may use, where that is less than the machine; else they are
the whole machine's, as disks and GPUs always are: everything that runs there, ours or not.
"""

import contextlib
import re
import threading
import time
from collections import defaultdict
from typing import Any

import psutil
import pynvml
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.machine import container

LOOK = 5.0  # seconds; one look takes a millisecond (measured, without GPUs)
PATIENCE = 5.0  # seconds that a run's end waits for its last epoch's values
MIB = 2**20


class Sampler:
    """Looks at this node until it is ended, or its process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gpus = _gpus()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._looks = 0
        self._flows, self._since = _flows(), time.monotonic()
        self._cpu = _Cpu()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="system", daemon=True).start()

    def send(self, mailbox: Any, node: str, epoch: int) -> None:
        """Leave what was seen since the last time in a mailbox."""
        event = {"kind": "system", "node": node, "epoch": epoch, "values": self.take()}
        ray.get(mailbox.put.remote(event))

    def take(self) -> dict[str, float]:
        """Means since the last time, by name: per cent, and MiB per second."""
        self._look()  # of a short epoch there may be no other
        with self._lock:
            found = {name: value / self._looks for name, value in self._sums.items()}
            self._sums.clear()
            self._looks = 0
            now, flows = time.monotonic(), _flows()
            seconds = max(now - self._since, 1e-3)
            for name, count in flows.items():
                found[f"{name}_mib_per_second"] = (count - self._flows[name]) / MIB / seconds
            self._flows, self._since = flows, now
        return found

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            self._look()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        with self._lock:
            self._sums["cpu_percent"] += self._cpu.percent()
            self._sums["memory_percent"] += _memory_percent()
            for number, gpu in enumerate(self._gpus):
                with contextlib.suppress(pynvml.NVMLError):
                    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                    busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
                    self._sums[f"gpu_{number}_percent"] += busy
                    self._sums[f"gpu_{number}_memory_percent"] += 100 * memory.used / memory.total
            self._looks += 1


class Nodes:
    """Samplers of every node: in this process for its own, in an actor on each of the others.

    Args:
        mailbox: where they leave what they have seen.
        others: whether nodes other than this process's are looked at.
    """

    def __init__(self, mailbox: Any, *, others: bool = True) -> None:
        self._mailbox, self._all = mailbox, others
        self._here = ray.get_runtime_context().get_node_id()
        self._sampler = Sampler()
        self._others: dict[str, Any] = {}  # by node id
        self._told: list[Any] = []
        self._names = self._look()

    def send(self, epoch: int) -> None:
        """Send averages of all nodes over an epoch that has ended; one that is gone sends none."""
        self._names = self._look()
        self._told = [
            actor.send.remote(self._mailbox, self._names[node], epoch)
            for node, actor in self._others.items()
            if node in self._names
        ]
        self._sampler.send(self._mailbox, self._names[self._here], epoch)

    def wait(self) -> None:
        """Until what they were last asked is told, or it takes too long; and look no more."""
        self._sampler.end()
        if self._told:
            ray.wait(self._told, num_returns=len(self._told), timeout=PATIENCE)

    def _look(self) -> dict[str, str]:
        """Names of nodes by id; those that have come since get an actor."""
        names = {node["NodeID"]: name_of(node) for node in ray.nodes() if node["Alive"]}
        for node in names.keys() - self._others.keys() - {self._here} if self._all else ():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            remote: Any = ray.remote  # its types do not know this strategy
            actor = remote(num_cpus=0, scheduling_strategy=there)(Sampler)
            self._others[node] = actor.remote()
        return names


def name_of(node: dict[str, Any]) -> str:
    """A node's name: Ray's, where it was given one, else the machine's; short, and stable."""
    given = node.get("NodeName", "")
    machine = node["NodeManagerHostname"].partition(".")[0]
    is_address = re.fullmatch(r"[0-9.]*|.*:.*", given)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", machine if is_address else given)


class _Cpu:
    """How busy CPUs have been since the last time: the container's own, or the machine's."""

    def __init__(self) -> None:
        self._at = self._look()

    def _look(self) -> tuple[float, container.Share | None, Any]:
        # Not psutil.cpu_percent(), which counts from the last call of the same thread.
        return time.monotonic(), container.cpu(), psutil.cpu_times()

    def percent(self) -> float:
        """Of what may be used, 0 to 100."""
        (before, had, machine_had), self._at = self._at, self._look()
        now, has, machine_has = self._at
        if had is None or has is None:
            return _busy(machine_had, machine_has)
        seconds = max(now - before, 1e-3)
        return min(max(100 * (has.used - had.used) / seconds / has.limit, 0.0), 100.0)


def _memory_percent() -> float:
    share = container.memory()
    return 100 * share.used / share.limit if share else float(psutil.virtual_memory().percent)


def _busy(before: Any, now: Any) -> float:
    """Per cent of all cores' time between two looks that was not idle."""
    spent = [later - earlier for earlier, later in zip(before, now, strict=True)]
    fields = dict(zip(now._fields, spent, strict=True))
    # A guest's time is in user's already.
    total = sum(spent) - fields.get("guest", 0.0) - fields.get("guest_nice", 0.0)
    idle = fields["idle"] + fields.get("iowait", 0.0)
    return min(max(100 * (1 - idle / total), 0.0), 100.0) if total > 0 else 0.0


def _gpus() -> list[object]:
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # there is no driver, so there are no GPUs
        return []


def _flows() -> dict[str, int]:
    """Bytes since the machine started."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    found = {"network_received": network.bytes_recv, "network_sent": network.bytes_sent}
    if disk is not None:  # a container may see none
        found |= {"disk_read": disk.read_bytes, "disk_written": disk.write_bytes}
    return found
