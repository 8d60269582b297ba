"""Parts that go wrong, for test_gpu_script.py."""

import subprocess
import time
from pathlib import Path

from benchmarks.gpu.report import Row


def works(settings):
    yield Row("", "worked", 3.0, "s", 6.0, "a rival", 2.0, 1.5)


def misses(settings):
    yield Row("", "was slow", 3.0, "s", 3.0, "a rival", 1.0, 1.5)


def raises(settings):
    yield Row("", "before it failed", 1.0)
    raise ValueError("no such thing")


def hangs(settings):
    """With a process of its own, which must not live on."""
    child = subprocess.Popen(["sleep", "600"])
    (Path(settings.scratch) / "child").write_text(str(child.pid))
    yield Row("", "before it hung", 1.0)
    time.sleep(600)


def finds_nothing(settings):
    yield from ()


def looks_at_the_clock(settings):
    yield Row("", "left", settings.left)
