"""What a checkpoint costs training: `python -m benchmarks.checkpoint [FOLDER]`, a minute.

The state of an `imagenet_lt` run with momentum and moving average. Training waits for the copy in
memory; the file and its hash are made and written by a thread, to FOLDER, a temporary folder by
default. If FOLDER is in S3, parts are sent one after another and in parallel, in turn. One thread
computes.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import imagenet_lt
from bcl_ray.method.learner import Learner
from bcl_ray.runs import checkpoint
from bcl_ray.runs.checkpoint import Snapshots
from bcl_ray.storage import files, s3
from bcl_ray.storage.s3 import parts
from benchmarks import alternate, print_table

ROUNDS = 3


def some_state() -> checkpoint.State:
    """The state of a run after a step."""
    experiment = with_overrides(imagenet_lt(), ["train.ema_decay=0.999"])
    counts = np.linspace(1280, 5, 1000).astype(int)
    learner = Learner(experiment, counts, 452, torch.device("cpu"))
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    return learner.state(
        history=[],
        fingerprint="",
        class_names=[str(number) for number in range(1000)],
        class_counts=counts.tolist(),
        uid="",
    )


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    state, snapshots = some_state(), Snapshots()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments[0] if arguments else temporary
        one, other = files.join(folder, "one"), files.join(folder, "other")
        take: Callable[[], object] = lambda: snapshots.take(state)  # noqa: E731
        blocked, whole = alternate(take, lambda: checkpoint.save(state, one), ROUNDS)
        size = files.list_files(one)[checkpoint.FILE]
        rows = [["copy in memory", f"{blocked:.3f}"], [f"file, hash, {folder}", f"{whole:.2f}"]]
        if s3.is_s3(folder):
            content = files.read_bytes(files.join(one, checkpoint.FILE))
            write: Callable[[], object] = lambda: files.write_bytes(other, content)  # noqa: E731
            sequential, parallel = alternate(lambda: one_by_one(write), write, ROUNDS)
            copied, _ = alternate(lambda: checkpoint.copy(one, other), take, ROUNDS)
            rows += [
                ["upload, parts one after another", f"{sequential:.2f}"],
                [f"upload, {parts.PARALLEL_PARTS} parts at once", f"{parallel:.2f}"],
                ["copy by the server", f"{copied:.2f}"],
            ]
        print_table(f"a checkpoint of {size / 1e6:.0f} MB", ["part", "s"], rows)
        if s3.is_s3(folder):
            print(f"parts at once: {sequential / parallel:.1f} x as fast as one after another")
            files.delete_folder(folder)
    print(f"training waits for {100 * blocked / (blocked + whole):.1f} % of a checkpoint's time")


def one_by_one(write: Callable[[], object]) -> None:
    """Upload with one part at a time."""
    at_once, parts.PARALLEL_PARTS = parts.PARALLEL_PARTS, 1
    try:
        write()
    finally:
        parts.PARALLEL_PARTS = at_once


if __name__ == "__main__":
    main(sys.argv[1:])
