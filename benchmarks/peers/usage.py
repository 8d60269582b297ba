"""CPU time and memory of a process with all its descendants."""

import contextlib
import subprocess
import time
from pathlib import Path

import psutil

SECONDS = 0.5  # between two looks


def cpu_seconds() -> float:
    """CPU time of this process and its descendants so far; those that ended may be missing."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def proportional_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants: shared pages count once in all."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(OSError):  # it has ended
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def peak_bytes(process: subprocess.Popen[str], seconds: float) -> int:
    """Watch a process until it ends; its largest `proportional_bytes`.

    Raises:
        TimeoutError: It runs for longer.
    """
    peak, end = 0, time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > end:
            raise TimeoutError(f"stopped after {seconds:g} s")
        peak = max(peak, proportional_bytes(process.pid))
        time.sleep(SECONDS)
    return peak
