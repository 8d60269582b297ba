"""The images of the trainings: CIFAR-100-LT of factor 100, or synthetic ones of the same counts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bcl_ray.data.shards import MANIFEST, Manifest, read_manifest, write_shards
from bcl_ray.data.sources import open_source
from benchmarks.gpu.report import Row
from benchmarks.gpu.supervise import Settings
from benchmarks.images import encoded, pictures

FACTOR, LARGEST = 100, 500
CLASSES, TEST = 100, 100  # classes, and test images of each
TINY = (10, 30, 4)  # classes, training images of the largest, test images of each
WHERE = "where.txt"  # in scratch: the folder of shards, and what the images are


def run(settings: Settings) -> Iterator[Row]:
    given, shards = settings.data, str(Path(settings.scratch) / "shards")
    what, note = f"CIFAR-100-LT, factor {FACTOR}", ""
    if given and (Path(given) / MANIFEST).exists():
        shards, manifest = given, read_manifest(given)
        what = f"shards of {manifest.source}"
    elif given:
        manifest = thinned(given, shards)
    else:
        manifest = synthetic(settings.smoke, settings.scratch, shards)
        what, note = "SYNTHETIC images", "NOT CIFAR: accuracies below mean nothing; see DATA"
    (Path(settings.scratch) / WHERE).write_text(f"{shards}\n{what}\n")
    rows = {name: split.rows for name, split in manifest.splits.items()}
    detail = {"splits": rows, "fingerprint": manifest.fingerprint}
    yield Row("", what, rows["train"], "for training", detail=detail, note=note)


def prepared(settings: Settings) -> tuple[str, Manifest, str]:
    """The folder of shards, its manifest, and a mark of images that are not real."""
    where = Path(settings.scratch) / WHERE
    if not where.exists():
        raise SystemExit("there are no images: the part `images` did not end")
    shards, what = where.read_text().splitlines()
    return shards, read_manifest(shards), " (SYNTHETIC)" if what.startswith("SYNTHETIC") else ""


def thinned(folder: str, shards: str, largest: int = LARGEST, factor: float = FACTOR) -> Manifest:
    """Shards of train.parquet and test.parquet, thinned to the profile."""
    return write_shards(
        open_source("parquet", folder),
        shards,
        profile="exponential",
        imbalance_factor=factor,
        max_per_class=largest,
    )


def synthetic(smoke: bool, scratch: str, shards: str) -> Manifest:
    """Noise whose brightness says a little about the class."""
    classes, largest, tested = TINY if smoke else (CLASSES, LARGEST, TEST)
    source = Path(scratch) / "source"
    source.mkdir()
    for seed, (split, each) in enumerate({"train": largest, "test": tested}.items()):
        labels = np.repeat(np.arange(classes), each)
        noise = pictures(len(labels), 32, 32, seed=seed)
        files = [
            encoded(image.point(lambda v, shade=label: v // 2 + shade * 128 // classes), "PNG")
            for label, image in zip(labels.tolist(), noise, strict=True)
        ]
        pq.write_table(pa.table({"image": files, "label": labels}), source / f"{split}.parquet")
    return thinned(str(source), shards, largest, 10 if smoke else FACTOR)
