"""Runs parts one after another, each in a process group that ends when its time is up."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import report
from benchmarks.gpu.report import Row

ROOT = Path(__file__).parents[2]
NOTICE = 0.9  # of its time, after which a part that looks at the clock begins nothing new
TAIL = 4096  # bytes of a part's log that are searched for its last line


@dataclass(frozen=True)
class Settings:
    """What every part is told."""

    device: str
    """cuda or cpu."""
    smoke: bool
    """Tiny sizes, to see that everything runs."""
    scratch: str
    """A folder for files that are not results."""
    data: str = ""
    """Folder of shards or of Parquet files; empty: synthetic images."""
    deadline: float = 0.0
    """Seconds since the epoch, at which the part shall be done."""

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def goal(self, ratio: float) -> float | None:
        """A goal, which is one of GPUs alone."""
        return ratio if self.device == "cuda" else None


class Part(NamedTuple):
    """What one process does."""

    entry: str
    """`module:function`, a generator of rows that takes Settings."""
    seconds: float
    """When it is killed."""
    required: bool = False
    """Whether the others make no sense where it fails."""


def supervise(
    parts: Mapping[str, Part], settings: Settings, out: Path, *, seconds: float
) -> list[Row]:
    """Run all parts; whatever they do, this returns, with at least one row of each that was begun.

    Args:
        parts: by name, in order.
        settings: for all of them.
        out: an existing folder, for the report and the log.
        seconds: for all of them together.
    """
    begun, rows = time.time(), []
    about: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    with (out / "log.txt").open("w") as log:
        for name, part in parts.items():
            left = begun + seconds - time.time()
            limit = min(part.seconds, left)
            if limit <= 0:
                found = [Row(name, "not begun", outcome=report.LATE, note="no time was left")]
            else:
                found = _run(name, part.entry, settings, log, limit)
            rows += found
            for row in found:
                about |= row.detail.pop("machine", {})
            print(report.table(found), flush=True)
            about["seconds"] = round(time.time() - begun, 1)
            report.write(out, about, rows)
            if part.required and any(row.outcome in report.BROKEN for row in found):
                break
    return rows


def _run(name: str, entry: str, settings: Settings, log: Any, seconds: float) -> list[Row]:
    log.write(f"== {name}\n")
    log.flush()
    begun = time.time()
    told = {**asdict(settings), "deadline": begun + NOTICE * seconds}
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as lines:
        command = [sys.executable, "-m", "benchmarks.gpu.part", entry, json.dumps(told), lines.name]
        # Threads that share a busy CPU wait for each other longer than they compute.
        threads = {"OMP_NUM_THREADS": "1"} if settings.device == "cpu" else {}
        status = _ended(command, {**os.environ, **threads}, log, seconds)
        rows = [Row(name, **json.loads(line)) for line in lines if line.endswith("\n")]
    taken = f"after {time.time() - begun:.0f} s"
    if status is None:
        rows.append(
            Row(name, f"ended {taken}", outcome=report.LATE, note="killed; log.txt has its output")
        )
    elif status != 0:
        note = f"{_last_line(Path(log.name))} (log.txt has more)"
        rows.append(Row(name, f"status {status} {taken}", outcome=report.FAILED, note=note))
    elif not rows:
        rows.append(Row(name, "found nothing", outcome=report.FAILED))
    return rows


def _ended(command: list[str], environment: dict[str, str], log: Any, seconds: float) -> int | None:
    """The exit status, or None of what was killed; nothing that it started is left."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(file: Path) -> str:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - TAIL))
        lines = log.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
