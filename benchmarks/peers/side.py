"""One side in a process of its own: `python -m benchmarks.peers.side read project FOLDER`.

`write` makes the side's format of the files; `read` measures its batches, and prints the result as
a line of JSON.
"""

import argparse
import importlib
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  a process that trains has it, so that its memory counts on every side

from benchmarks.peers import BATCH, IMAGES, SIZE, VIEWS, WORKERS
from benchmarks.peers.usage import cpu_seconds

EPOCHS = 2  # that are measured, after one that is not
SHAPES = ((VIEWS, 3, SIZE, SIZE), (VIEWS, SIZE, SIZE, 3))
EVERY = 4099  # of a batch's pixels, one is looked at: a prime, so that all channels and rows are


def measured(module: Any, folder: Path) -> dict[str, float]:
    """Images per second and CPU time per image, in seconds, both after the first epoch.

    With them, mean and deviation of the pixels.
    """
    begun, used, images, first = 0.0, 0.0, 0, 0
    samples = []
    batches = module.batches(folder)  # held here, so that it ends after the last measurement
    for batch in batches:
        pixels = np.asarray(batch)
        if pixels.shape[1:] not in SHAPES or pixels.dtype != np.uint8 or len(pixels) > BATCH:
            raise ValueError(f"a batch has shape {pixels.shape}, {pixels.dtype}")
        samples.append(pixels.reshape(-1)[::EVERY].copy())
        images += len(pixels)
        if not begun and images >= IMAGES:
            begun, used, first = time.perf_counter(), cpu_seconds(), images
        if images >= IMAGES * (1 + EPOCHS):
            break
    seconds, used, images = time.perf_counter() - begun, cpu_seconds() - used, images - first
    values = np.concatenate(samples)
    colours = {"mean": float(values.mean()), "deviation": float(values.std())}
    return {"rate": images / seconds, "cpu": used / images, **colours}


def main() -> None:
    """Write or read."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["write", "read"])
    parser.add_argument("side")
    parser.add_argument("folder", type=Path)
    parser.add_argument("distributions", nargs="*")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    module = importlib.import_module(f"benchmarks.peers.{given.side}")
    if given.action == "write":
        module.write(given.folder)
    else:
        versions = [f"{name} {metadata.version(name)}" for name in given.distributions]
        print(json.dumps(measured(module, given.folder) | {"versions": ", ".join(versions)}))


if __name__ == "__main__":
    main()
