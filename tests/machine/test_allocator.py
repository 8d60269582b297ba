"""Memory that a process frees stays with it."""

import os
import platform
import subprocess
import sys

import pytest

from bcl_ray.machine.allocator import KEEP_FREED_MEMORY, keep_freed_memory

# Counts page faults in a thread, as a worker's training is one.
PROGRAM = """
import resource, threading

def allocate():
    bytearray(200_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(200_000_000)  # zeros: of the kernel, or written by this process
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""


def page_faults(variables: dict[str, str]) -> int:
    others = {name: value for name, value in os.environ.items() if name not in KEEP_FREED_MEMORY}
    return int(
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**others, **variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries ignore these")
def test_memory_that_is_freed_and_allocated_again_is_not_asked_of_the_kernel_again(monkeypatch):
    for name in KEEP_FREED_MEMORY:
        monkeypatch.delenv(name, raising=False)
    assert page_faults({}) > 500
    assert page_faults(keep_freed_memory()) < 100


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert "MALLOC_ARENA_MAX" not in keep_freed_memory()
    assert "MALLOC_TRIM_THRESHOLD_" in keep_freed_memory()
