"""A search of 500 trials in a real object store: `python -m benchmarks.search`, four minutes.

OpenStack Swift runs on this machine. 500 trials lie in it, with the files that runs leave. Measured
are: all trials read at once, as a resumed search does, and one after the other; and the longest
time that Ray Tune's loop waits for the search while 64 trials report, with the thread that writes
to the ledger and with direct writes. The last line is the ratio of these waits.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.ops.local.swift import Swift
from bcl_ray.runs import run_folder
from bcl_ray.storage import files
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.search_ledger import SearchLedger, begin
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.trials import Trial
from benchmarks import print_table

TRIALS, AT_ONCE, PORT = 500, 64, 23900
CHECKPOINTS = ("checkpoint_1", "checkpoint_2", "best_1")


def leave_trial(ledger: SearchLedger, number: int) -> None:
    """Write what a trial leaves, with checkpoints of a few bytes."""
    scores = {epoch: 50.0 + epoch for epoch in range(1, 41)}
    trial = Trial(f"trial-{number:03d}", number, {"loss.tau": 1.0}, scores=scores, status="stopped")
    ledger.save(trial)
    run = run_folder.create(ledger.file(trial.name), digits_lt(), "f" * 64)
    for folder in CHECKPOINTS:
        for name in ("state.pt", "state.pt.sha256"):
            files.write_bytes(files.join(run.uri, folder, name), b"weights")


def longest_wait(ledger: SearchLedger, *, direct: bool) -> float:
    """Seconds that the longest of many reports of trials takes."""
    longest = 0.0
    with LedgerWriter(ledger) as writer:
        save = ledger.save if direct else writer.save
        for epoch in range(1, 5):
            for number in range(AT_ONCE):
                trial = Trial(f"trial-{number:03d}", number, {}, scores={epoch: 1.0})
                start = time.perf_counter()
                save(trial)
                longest = max(longest, time.perf_counter() - start)
    return longest


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure() -> None:
    """Measure in the bucket of the environment."""
    ledger = begin("s3://searches/one", Settings(), Extent(TRIALS), digits_lt(), "f" * 64)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: leave_trial(ledger, number), range(TRIALS)))
    names = files.list_folders(ledger.uri)
    rows = {
        "list the folders": timed(lambda: files.list_folders(ledger.uri)),
        "all trials, as when a search is resumed": timed(ledger.trials),
        "one after the other": timed(lambda: [ledger._read_trial(name) for name in names]),
        "longest wait of Tune's loop": longest_wait(ledger, direct=False),
        "with direct writes": longest_wait(ledger, direct=True),
    }
    assert len(ledger.trials()) == TRIALS
    print_table(
        f"{TRIALS} trials, Swift", ["", "s"], [[name, f"{s:.4f}"] for name, s in rows.items()]
    )
    *_, thread, direct = rows.values()
    print(f"Tune's loop waits {direct / thread:.0f} x longer for direct writes than for the thread")


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bcl-search-"))
    server = Swift(folder, PORT)
    try:
        server.start()
        os.environ.update(server.environment())
        from bcl_ray.storage import s3  # noqa: PLC0415  it reads the environment

        s3.client(s3.parse_uri("s3://searches")).create_bucket(Bucket="searches")
        measure()
    finally:
        server.processes.kill(*server.processes.names())
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
