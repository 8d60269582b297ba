"""Load of the nodes while a run trains: CPU, memory, disks, network and GPUs.

A thread on each node takes a sample every few seconds; an epoch's metrics are means of them. CPU
and memory are the container's, in per cent of its limits, if these are lower than the machine's.
All other metrics are the whole machine's, and include other programs.
"""

import contextlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import psutil
import pynvml
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.machine import container

SAMPLE_INTERVAL = 5.0  # seconds; a sample takes a millisecond (measured, without GPUs)
FINAL_TIMEOUT = 5.0  # seconds to wait for the last epoch's metrics
MIB = 2**20


class NodeSampler:
    """Samples this node's load from a thread, until `end` or the end of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gpus = _gpus()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._samples = 0
        self._traffic, self._since = _traffic(), time.monotonic()
        self._cpu = _Cpu()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="system", daemon=True).start()

    def send(self, channel: Any, node: str, epoch: int) -> None:
        """Send the driver what `take` returns, as the metrics of a node and an epoch."""
        event = {"kind": "system", "node": node, "epoch": epoch, "values": self.take()}
        ray.get(channel.put.remote(event))

    def take(self) -> dict[str, float]:
        """Means since the last call, by name: per cent, and MiB per second."""
        self._sample()  # a short epoch may have no other
        with self._lock:
            values = {name: total / self._samples for name, total in self._sums.items()}
            self._sums.clear()
            self._samples = 0
            now, traffic = time.monotonic(), _traffic()
            seconds = max(now - self._since, 1e-3)
            for name, count in traffic.items():
                values[f"{name}_mib_per_second"] = (count - self._traffic[name]) / MIB / seconds
            self._traffic, self._since = traffic, now
        return values

    def end(self) -> None:
        """End the thread."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            self._sums["cpu_percent"] += self._cpu.percent()
            self._sums["memory_percent"] += _memory_percent()
            for number, gpu in enumerate(self._gpus):
                with contextlib.suppress(pynvml.NVMLError):
                    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                    busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
                    self._sums[f"gpu_{number}_percent"] += busy
                    self._sums[f"gpu_{number}_memory_percent"] += 100 * memory.used / memory.total
            self._samples += 1


class NodeSamplers:
    """A sampler on every node: in this process for its own, in an actor on each other node.

    Args:
        channel: Handle of the run's `Channel`, which gets the metrics.
        all_nodes: Whether to sample other nodes than this process's.
    """

    def __init__(self, channel: Any, *, all_nodes: bool = True) -> None:
        self._channel, self._all_nodes = channel, all_nodes
        self._this_node = ray.get_runtime_context().get_node_id()
        self._sampler = NodeSampler()
        self._actors: dict[str, Any] = {}  # by node id
        self._pending: list[Any] = []  # results of the actors' last `send`
        self._start_actors(_living_nodes())

    def send(self, epoch: int) -> None:
        """Send the metrics of an epoch that has ended; nodes that are gone send none."""
        names = _living_nodes()
        self._start_actors(names)
        self._pending = [
            actor.send.remote(self._channel, names[node], epoch)
            for node, actor in self._actors.items()
            if node in names
        ]
        self._sampler.send(self._channel, names[self._this_node], epoch)

    def close(self) -> None:
        """End the sampling, and wait FINAL_TIMEOUT seconds at most for the last metrics."""
        self._sampler.end()
        if self._pending:
            ray.wait(self._pending, num_returns=len(self._pending), timeout=FINAL_TIMEOUT)

    def _start_actors(self, nodes: Iterable[str]) -> None:
        """Start an actor on each node of these ids that has none yet."""
        if not self._all_nodes:
            return
        for node in set(nodes) - self._actors.keys() - {self._this_node}:
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            remote: Any = ray.remote  # its types do not know this strategy
            actor = remote(num_cpus=0, scheduling_strategy=strategy)(NodeSampler)
            self._actors[node] = actor.remote()


def _living_nodes() -> dict[str, str]:
    """Names of all living nodes by id."""
    return {node["NodeID"]: name_of(node) for node in ray.nodes() if node["Alive"]}


def name_of(node: dict[str, Any]) -> str:
    """A short and stable name: Ray's name of the node, or its machine's if that is an address."""
    name = node.get("NodeName", "")
    machine = node["NodeManagerHostname"].partition(".")[0]
    is_address = re.fullmatch(r"[0-9.]*|.*:.*", name)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", machine if is_address else name)


class _Cpu:
    """CPU load since the last call: the container's, or the machine's."""

    def __init__(self) -> None:
        self._last = self._read()

    def _read(self) -> tuple[float, container.Share | None, Any]:
        # Not psutil.cpu_percent(), which counts from the last call of the same thread.
        return time.monotonic(), container.cpu_share(), psutil.cpu_times()

    def percent(self) -> float:
        """Per cent of the CPUs that may be used, 0 to 100."""
        (last_time, last_share, last_machine), self._last = self._last, self._read()
        now, share, machine = self._last
        if last_share is None or share is None:
            return _machine_cpu_percent(last_machine, machine)
        seconds = max(now - last_time, 1e-3)
        return min(max(100 * (share.used - last_share.used) / seconds / share.limit, 0.0), 100.0)


def _memory_percent() -> float:
    share = container.memory_share()
    return 100 * share.used / share.limit if share else float(psutil.virtual_memory().percent)


def _machine_cpu_percent(last: Any, now: Any) -> float:
    """Per cent of all cores' time that was not idle, between two results of psutil.cpu_times."""
    spent = [later - earlier for earlier, later in zip(last, now, strict=True)]
    fields = dict(zip(now._fields, spent, strict=True))
    # `user` includes a guest's time.
    total = sum(spent) - fields.get("guest", 0.0) - fields.get("guest_nice", 0.0)
    idle = fields["idle"] + fields.get("iowait", 0.0)
    return min(max(100 * (1 - idle / total), 0.0), 100.0) if total > 0 else 0.0


def _gpus() -> list[object]:
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, so no GPUs
        return []


def _traffic() -> dict[str, int]:
    """Bytes since the machine started, by direction."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    counts = {"network_received": network.bytes_recv, "network_sent": network.bytes_sent}
    if disk is not None:  # a container may have none
        counts |= {"disk_read": disk.read_bytes, "disk_written": disk.write_bytes}
    return counts
