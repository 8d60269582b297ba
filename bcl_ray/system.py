"""What a node does while it trains: CPU, memory, disks, network and GPUs.

A thread looks every few seconds and adds up; an epoch takes the means. Values are the whole
node's: everything that runs there, whether it is ours or not.
"""

import contextlib
import re
import socket
import threading
import time
from collections import Counter

import psutil
import pynvml
import ray

LOOK = 5.0  # seconds; one look takes a tenth of a millisecond (measured, without GPUs)
MIB = 2**20


class Sampler:
    """Looks at this node until its process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gpus = _gpus()
        self._sums: Counter[str] = Counter()
        self._looks = 0
        self._flows, self._since = _flows(), time.monotonic()
        psutil.cpu_percent()  # which counts from the call before
        threading.Thread(target=self._watch, name="system", daemon=True).start()

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
        while True:
            time.sleep(LOOK)
            self._look()

    def _look(self) -> None:
        with self._lock:
            self._sums["cpu_percent"] += psutil.cpu_percent()
            self._sums["memory_percent"] += psutil.virtual_memory().percent
            for number, gpu in enumerate(self._gpus):
                with contextlib.suppress(pynvml.NVMLError):
                    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                    busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
                    self._sums[f"gpu_{number}_percent"] += busy
                    self._sums[f"gpu_{number}_memory_percent"] += 100 * memory.used / memory.total
            self._looks += 1


def node_name() -> str:
    """This node's name: Ray's, where it was given one, else the machine's; short, and stable."""
    own = ray.get_runtime_context().get_node_id()
    names = [node.get("NodeName", "") for node in ray.nodes() if node["NodeID"] == own]
    named = next((name for name in names if not re.fullmatch(r"[0-9.]*|.*:.*", name)), None)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", named or socket.gethostname().partition(".")[0])


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
