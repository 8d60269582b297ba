"""NVIDIA DALI's pipeline without a GPU: threads of the consumer's process."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import BATCH, PREFETCH, RATIO, SCALE, SIZE, VIEWS, WORKERS

fn, types = (importlib.import_module(f"nvidia.dali.{name}") for name in ("fn", "types"))


def write(folder: Path) -> None:
    """Do nothing: it reads the files."""


def _view(pixels: Any) -> Any:
    crop = fn.random_resized_crop(
        pixels,
        size=[SIZE, SIZE],
        random_area=SCALE,
        random_aspect_ratio=RATIO,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    return fn.flip(crop, horizontal=fn.random.coin_flip())


def batches(folder: Path) -> Iterator[Any]:
    """Batches in DALI's own memory, which are not copied.

    An image is decoded once for all its views. To decode the part of each crop alone
    (`decoders.image_random_crop`) takes longer, because each view is then decoded anew.
    """
    files = sorted(map(str, (folder / "source").glob("*.jpg")))
    pipeline = importlib.import_module("nvidia.dali").Pipeline(
        BATCH, WORKERS, device_id=None, prefetch_queue_depth=PREFETCH
    )
    with pipeline:
        images, _ = fn.readers.file(files=files, random_shuffle=True, initial_fill=len(files))
        pixels = fn.decoders.image(images, device="cpu", output_type=types.RGB)
        pipeline.set_outputs(fn.stack(*(_view(pixels) for _ in range(VIEWS))))
    pipeline.build()
    while True:
        (views,) = pipeline.run()
        yield np.asarray(views.as_tensor())
