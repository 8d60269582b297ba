"""What it runs on: card, driver, versions, commit; and all that only a GPU can be asked."""

import contextlib
import operator
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bcl_ray.machine.versions import versions
from benchmarks import alternate
from benchmarks.gpu.report import Row
from benchmarks.gpu.supervise import Settings

LEAST = 0.05  # seconds of one measurement: calls are repeated until they fill it


def run(settings: Settings) -> Iterator[Row]:
    """The first part: without a GPU, say so at once."""
    about: dict[str, Any] = {
        "device": settings.device,
        **versions(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    if settings.device == "cpu":
        about["card"] = "none: the CPU, with tiny sizes"
    else:
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device: `make gpu-smoke` tries everything on the CPU")
        about |= _card()
    yield Row("", about["card"], detail={"machine": about}, note=f"torch {torch.__version__}")


def _card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        driver = asked.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {
        "card": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def device_of(settings: Settings) -> torch.device:
    """As Ray Train gives it to a worker: with a number."""
    return torch.device("cuda", 0) if settings.device == "cuda" else torch.device("cpu")


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Repeated:
    """So many calls of a function that they can be timed; waits for the device at their end."""

    def __init__(self, function: Callable[[], object], device: torch.device) -> None:
        self._function, self._device, self.calls = function, device, 1
        for _ in range(2):  # the second is not burdened by what is made once
            begun = time.perf_counter()
            self()
            taken = time.perf_counter() - begun
        self.calls = min(100, max(1, round(LEAST / taken)))

    def __call__(self) -> None:
        for _ in range(self.calls):
            self._function()
        wait(self._device)


def versus(
    ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, rounds: int = 5
) -> tuple[float, float]:
    """Median seconds of one call of each, measured in turn."""
    sides = Repeated(ours, device), Repeated(theirs, device)
    first, second = alternate(*sides, rounds=rounds)
    return first / sides[0].calls, second / sides[1].calls


def seconds(function: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Median seconds of one call."""
    repeated = Repeated(function, device)
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        repeated()
        taken.append((time.perf_counter() - begun) / repeated.calls)
    return statistics.median(taken)


@contextlib.contextmanager
def never_waited_for(device: torch.device) -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises RuntimeError; on a CPU nothing can."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def peak_mib(function: Callable[[], object], device: torch.device) -> float | None:
    """Most memory of tensors during a call, beyond those before it; None on a CPU."""
    if device.type != "cuda":
        function()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def profile(function: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The operations that take longest in a call, on the device, and how many are launched."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        function()
        wait(device)
    events = profiler.key_averages()
    cost = operator.attrgetter(f"self_{'cpu' if device.type == 'cpu' else 'device'}_time_total")
    # Operations on the host have the time of the kernels that they launch as well.
    there = [event for event in events if event.device_type.name.lower() == device.type]
    top = sorted(there, key=cost, reverse=True)[:25]
    return {
        "launches": sum(event.count for event in events if event.key.startswith("cudaLaunch")),
        "device_us": sum(cost(event) for event in there),
        "top": [{"name": e.key, "us": cost(e), "calls": e.count} for e in top],
    }
