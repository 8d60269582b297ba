"""Planning an epoch: seconds and memory per worker, up to a billion images.

`python -m benchmarks.plan`: every size in a process of its own, so that peak memory is that of
the plan alone (less the interpreter with its imports). Row groups of 76 images are ImageNet's
at 16 MiB with 220 kB an image; shards hold 256 MiB. The last line is the worst case of row
groups that are read twice.
"""

import itertools
import json
import resource
import subprocess
import sys
import time

from bcl_ray.data.layout import Layout
from bcl_ray.data.plan import EpochPlan
from benchmarks import print_table

SIZES = (1_000_000, 100_000_000, 1_000_000_000)
ROW_GROUP_ROWS, SHARD_ROWS = 76, 1220
BATCH, MAX_WORKERS = 256, 16
READS = 2000
GOAL = "goal at a billion: 1 s and 200 MB"


def measure(rows: int) -> dict[str, float]:
    """Plan the second half of an epoch as worker 15 of 16; seconds, bytes, seconds per read."""
    before = _peak()
    began = time.perf_counter()
    shards, rest = divmod(rows, SHARD_ROWS)
    layout = Layout((SHARD_ROWS,) * shards + (rest,), ROW_GROUP_ROWS)
    plan = EpochPlan(layout, seed=0, epoch=1, global_batch_size=BATCH, max_workers=MAX_WORKERS)
    reads = plan.reads(MAX_WORKERS - 1, MAX_WORKERS, first_step=plan.steps // 2)
    next(reads)
    first = time.perf_counter() - began
    began = time.perf_counter()
    taken = sum(1 for _ in itertools.islice(reads, READS))
    return {
        "seconds": first,
        "read": (time.perf_counter() - began) / taken,
        "bytes": _peak() - before,
        "row_groups": int(layout.first_groups[-1]),
        "lanes": plan.lanes,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_its_own_process(rows: int) -> dict[str, float]:
    """`measure` in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.plan", str(rows)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(found.stdout))


def reads_per_row_group(rows: int) -> float:
    """Reads of a whole epoch, over all workers, divided by row groups; counted."""
    layout = Layout((SHARD_ROWS,) * (rows // SHARD_ROWS), ROW_GROUP_ROWS)
    plan = EpochPlan(layout, seed=0, epoch=0, global_batch_size=BATCH, max_workers=MAX_WORKERS)
    reads = sum(1 for rank in range(MAX_WORKERS) for _ in plan.reads(rank, MAX_WORKERS))
    return reads / int(layout.first_groups[-1])


def main() -> None:
    """Print the table."""
    rows = []
    for size in SIZES:
        found = in_its_own_process(size)
        rows.append(
            (
                f"{size:,}",
                f"{found['row_groups']:,.0f}",
                f"{found['seconds']:.3f}",
                f"{found['bytes'] / 1e6:.0f}",
                f"{found['read'] * 1e6:.0f}",
                f"{1 + (found['lanes'] - 1) / found['row_groups']:.6f}",
            )
        )
    columns = (
        "images",
        "row groups",
        "s to first read",
        "MB",
        "us per read",
        "reads / group, at most",
    )
    print_table(f"planning an epoch, one worker of {MAX_WORKERS} ({GOAL})", columns, rows)
    counted = reads_per_row_group(200_000)
    print(
        f"reads / row groups, counted at 200,000 images over {MAX_WORKERS} workers: {counted:.4f}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
