"""How a process gets memory from the kernel.

By default the C library of most Linux systems (glibc) returns every large block to the kernel as
soon as it is freed. A training step on a CPU allocates and frees hundreds of MB, which the kernel
then has to fill with zeros again, page by page: a quarter to a half of a step's time (measured
2026-11; benchmarks/README.md, epoch.py).
"""

import os

# Variables of mallopt(3). `mallopt` itself comes too late: threads have their arenas by then.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",  # blocks above 64 MiB in an arena of a thread are always returned
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),  # bytes by which the heap grows, at least
}


def keep_freed_memory() -> dict[str, str]:
    """Variables of the environment that let a new process reuse the memory that it frees.

    It then holds as much memory as it ever used at once, until it ends. This is for a process that
    does the same work again and again, such as a training step. Other C libraries ignore the
    variables; one that this process's environment has stays as it is.
    """
    return {name: value for name, value in KEEP_FREED_MEMORY.items() if name not in os.environ}
