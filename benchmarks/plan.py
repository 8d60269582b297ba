"""The epoch plan and the manifest: seconds and memory at size, and how well batches are mixed.

`python -m benchmarks.plan`: plans of up to a billion images and a manifest of 430,000 shards, each
in a process of its own, so that peak memory is that of the one thing alone (less the interpreter
with its imports). Then every meeting of rows of one row group is counted in epochs of ImageNet-LT's
size. Row groups of 38 images are ImageNet's at 4 MiB with 110 kB an image, those of 76 the ones of
data sets that were written before 2026-12; shards hold 256 MiB.
"""

import functools
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bcl_ray.data.layout import Layout
from bcl_ray.data.plan import EpochPlan
from bcl_ray.data.shards import Manifest, NumberedNames, ProfileInfo, ShardColumns, Split
from bcl_ray.data.shards.manifest import read_manifest, write_manifest
from benchmarks import print_table

SIZES = (1_000_000, 100_000_000, 1_000_000_000)
GROUP_ROWS, SHARD_ROWS = 38, 2440
BATCH, WORKERS = 256, 16
READS = 2000
PLAN_GOAL, MANIFEST_GOAL = "goal at a billion: 1 s and 200 MB", "goal: 2 s and 300 MB"

SHARDS = 430_000
CLASSES = 1000

IMAGES = 115_846  # of ImageNet-LT
VIEW_BYTES = 3 * 3 * 224**2
# Batch, workers, and rows of a row group.
MIXED = (
    *((256, workers, rows) for rows in (38, 76) for workers in (1, 8, 16)),
    (720, 16, 38),
    (1920, 16, 38),
    (4096, 64, 38),
    (4096, 64, 76),
    (5040, 16, 38),
)


def layout_of(rows: int, group_rows: int) -> Layout:
    """Full shards, and one of the rest."""
    shards, rest = divmod(rows, SHARD_ROWS)
    return Layout(np.array([SHARD_ROWS] * shards + [rest] * (rest > 0)), group_rows)


def measure_plan(rows: int) -> dict[str, float]:
    """Plan the second half of an epoch as worker 15 of 16; seconds, bytes, seconds per read."""
    before = _peak()
    began = time.perf_counter()
    layout = layout_of(rows, GROUP_ROWS)
    plan = EpochPlan(layout, seed=0, epoch=1, global_batch_size=BATCH, max_workers=WORKERS)
    reads = plan.reads(WORKERS - 1, WORKERS, first_step=plan.steps // 2)
    next(reads)
    first = time.perf_counter() - began
    began = time.perf_counter()
    taken = sum(1 for _ in itertools.islice(reads, READS))
    return {
        "seconds": first,
        "read": (time.perf_counter() - began) / taken,
        "bytes": _peak() - before,
        "row_groups": int(layout.first_groups[-1]),
    }


def measure_manifest(folder: str) -> dict[str, float]:
    """Open a manifest, and make the layout of its split."""
    before, began = _peak(), time.perf_counter()
    split = read_manifest(folder).splits["train"]
    rows = Layout.of(split).rows
    return {"seconds": time.perf_counter() - began, "bytes": _peak() - before, "rows": rows}


def write_large_manifest(folder: str) -> None:
    """Write a manifest of SHARDS shards that do not exist."""
    rng = np.random.default_rng(0)
    columns = ShardColumns(
        NumberedNames("train", SHARDS),
        np.full(SHARDS, SHARD_ROWS),
        rng.integers(2**28, 2**28 + 2**17, SHARDS),
        rng.integers(0, 256, (SHARDS, 32), np.uint8),
    )
    rows = SHARDS * SHARD_ROWS
    split = Split(
        rows=rows,
        class_counts=(rows // CLASSES,) * CLASSES,
        row_group_rows=GROUP_ROWS,
        shards=columns,
    )
    manifest = Manifest(
        class_names=tuple(map(str, range(CLASSES))),
        splits={"train": split},
        source="benchmark",
        profile=ProfileInfo(name="natural", imbalance_factor=None, max_per_class=None, seed=0),
        fingerprint="",
    )
    write_manifest(folder, manifest)


def _peak() -> int:
    """Peak memory of this process in bytes; `resource` would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


MEASURES = {
    "plan": lambda text: measure_plan(int(text)),
    "manifest": measure_manifest,
}


def in_its_own_process(*arguments: str) -> dict[str, float]:
    """One of MEASURES in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.plan", *arguments]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(found.stdout))


@functools.lru_cache(1)
def groups_of_rows(group_rows: int) -> np.ndarray:
    """The row group of each row, (IMAGES,)."""
    layout = layout_of(IMAGES, group_rows)
    groups = np.arange(layout.first_groups[-1])
    return np.repeat(groups, layout.locate(groups)[-1])


def meetings(plan: EpochPlan, workers: int) -> tuple[int, int]:
    """Pairs of rows of one row group in the same step of the same worker; and reads of an epoch."""
    groups = groups_of_rows(plan.layout.row_group_rows)
    met, reads = 0, 0
    for rank in range(workers):
        own = list(plan.reads(rank, workers))
        reads += len(own)
        blocks = ({"rows": plan.layout.positions(read)} for read in own)
        for parts in plan.batches(blocks, rank, workers):
            counts = np.bincount(groups[np.concatenate([part["rows"] for part in parts])])
            met += int((counts * (counts - 1)).sum()) // 2
    return met, reads


def mixing(version: int, batch: int, workers: int, group_rows: int) -> list[str]:
    """Cells of a table: meetings against a perfect shuffle, reads per row group, memory."""
    plan = EpochPlan(
        layout_of(IMAGES, group_rows),
        seed=0,
        epoch=0,
        global_batch_size=batch,
        max_workers=max(WORKERS, workers),
        version=version,
    )
    met, reads = meetings(plan, workers)
    sizes, own = np.bincount(groups_of_rows(group_rows)), batch // workers
    pairs = int((sizes * (sizes - 1)).sum()) // 2
    by_chance = plan.steps * workers * own * (own - 1) / (IMAGES * (IMAGES - 1))
    open_rows = min(plan.open_rows, 2 * IMAGES)
    return [
        f"{100 * met / pairs:.2f} %",
        f"{100 * by_chance:.3f} %",
        f"{met / pairs / by_chance:,.1f}",
        f"{reads / len(sizes):.2f}",
        f"{open_rows * VIEW_BYTES / 2**30:.1f}",
    ]


def main() -> None:
    """Print the tables."""
    rows = []
    for size in SIZES:
        found = in_its_own_process("plan", str(size))
        rows.append(
            (
                f"{size:,}",
                f"{found['row_groups']:,.0f}",
                f"{found['seconds']:.3f}",
                f"{found['bytes'] / 1e6:.0f}",
                f"{found['read'] * 1e6:.0f}",
            )
        )
    columns: tuple[str, ...] = ("images", "row groups", "s to first read", "MB", "us per read")
    print_table(f"planning an epoch, one worker of {WORKERS} ({PLAN_GOAL})", columns, rows)

    columns = ("version", "batch", "workers", "row group", "meet", "by chance", "x", "reads", "GiB")
    mixed = [
        (
            str(version),
            str(batch),
            str(workers),
            str(group),
            *mixing(version, batch, workers, group),
        )
        for (batch, workers, group), version in itertools.product(MIXED, (1, 2))
    ]
    print_table(f"rows of a row group, {IMAGES:,} images (goal: at most 3 x)", columns, mixed)

    with tempfile.TemporaryDirectory() as folder:
        write_large_manifest(folder)
        found = in_its_own_process("manifest", folder)
    print(
        f"opening a manifest of {SHARDS:,} shards: {found['seconds']:.2f} s, "
        f"{found['bytes'] / 1e6:.0f} MB ({MANIFEST_GOAL})"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(MEASURES[sys.argv[1]](sys.argv[2])))
    else:
        main()
