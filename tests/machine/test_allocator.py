"""Memory that a process frees stays with it."""

import platform
import subprocess
import sys

import pytest

from bcl_ray.machine.allocator import keep_freed_memory

# A process of its own: the setting is for a whole process, and its tests would share memory.
PROGRAM = """
import resource
from bcl_ray.machine.allocator import keep_freed_memory

def faults(repetitions):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repetitions):
        bytearray(50_000_000)  # zeros: from the kernel, or written by this process
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before, kept = faults(10), keep_freed_memory()
faults(1)
print(before, kept, faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_that_is_freed_and_allocated_again_is_not_asked_of_the_kernel_again():
    text = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    before, kept, after = text.split()
    assert int(before) > 50_000
    assert kept == "True"
    assert int(after) < 100


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory.__wrapped__() is False
