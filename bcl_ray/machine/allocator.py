"""How this process gets memory from the kernel.

By default the C library of most Linux systems (glibc) returns every large block to the kernel as
soon as it is freed. A training step on a CPU allocates and frees hundreds of MB, which the kernel
then has to fill with zeros again, page by page: a quarter to a third of a step's CPU time (measured
2026-11; benchmarks/README.md, epoch.py).
"""

import ctypes
import functools
import platform

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER = 2**31 - 1  # bytes that a block, or the unused end of the heap, does not exceed
HEAP_STEP = 64 * 2**20  # bytes by which the heap grows, at least


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process reuse the memory that it frees, from now to its end.

    It then holds as much memory as it ever used at once, until it ends. This is for a process that
    does the same work again and again, such as a training step.

    Blocks above 64 MiB that another thread than the first allocates are still returned. Variables
    of glibc (MALLOC_ARENA_MAX) would keep those, too; but a worker's variables reach its data
    tasks, for which Ray then starts new processes instead of taking those that wait, and a drill
    saw no data for 20 s after a restart (2026-11, Ray 2.60).

    Returns:
        Whether the C library can do so; False with other libraries than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = (
        (M_MMAP_THRESHOLD, NEVER),
        (M_TRIM_THRESHOLD, NEVER),
        (M_TOP_PAD, HEAP_STEP),
    )
    return all(mallopt(option, value) == 1 for option, value in options)
