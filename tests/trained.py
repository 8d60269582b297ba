"""A model that knows something, in a run's folder, trained in seconds and without Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import pyarrow as pa

EPOCHS, BATCH = 4, 32


@dataclass(frozen=True)
class Trained:
    """Shards of digits, and the run `first` that learned them."""

    shards: str
    root: str
    checkpoint: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """BCL on digits, a few epochs; its temperature is 1.25."""
    # Here, lest every test's process imports torch.
    import torch

    from bcl_ray.data.shards import write_shards
    from bcl_ray.data.sources import open_source
    from bcl_ray.experiment.overrides import with_overrides
    from bcl_ray.experiment.recipes import digits_lt
    from bcl_ray.method.learner import Learner
    from bcl_ray.method.loop import train_epoch
    from bcl_ray.runs import checkpoint, run_folder
    from bcl_ray.storage import files

    folder = tmp_path_factory.mktemp("trained")
    shards = str(folder / "digits")
    manifest = write_shards(
        open_source("digits"), shards, profile="exponential", imbalance_factor=10
    )
    options = [
        "data.validation_split=test",
        f"data.path={shards}",
        f"tracking.runs={folder}/runs",
        "train.precision=float32",
    ]
    experiment = with_overrides(digits_lt(), [*options, f"train.epochs={EPOCHS}"])
    rows = rows_of(shards, "train")
    counts = np.array(manifest.splits["train"].class_counts)
    learner = Learner(experiment, counts, len(rows) // BATCH, torch.device("cpu"))
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(rows))
        for _ in train_epoch(learner, batches(rows, order, experiment, epoch), epoch=epoch):
            pass
    run = run_folder.create(f"{folder}/runs/first", experiment, manifest.fingerprint)
    state = learner.state(
        history=[{"calibration/temperature": 1.25}],
        fingerprint=manifest.fingerprint,
        class_names=list(manifest.class_names),
        class_counts=counts.tolist(),
        uid=run.uid,
    )
    best = files.join(run.uri, f"{run_folder.BEST}{learner.step:08d}")
    checkpoint.save(state, best)
    return Trained(shards, f"{folder}/runs", best)


def rows_of(shards: str, split: str) -> "pa.Table":
    """All rows of a split, in order."""
    import pyarrow as pa

    from bcl_ray.data.shards import read_manifest
    from bcl_ray.data.shards.read import read_row_group

    found = read_manifest(shards).splits[split]
    size = found.row_group_rows
    return pa.concat_tables(
        read_row_group(str(Path(shards) / shard.file), group)
        for shard in found.shards
        for group in range(-(-shard.rows // size))
    )


def batches(rows: "pa.Table", order: np.ndarray, experiment, epoch: int):
    from bcl_ray.data.views.host import train_views

    for start in range(0, len(order) - BATCH + 1, BATCH):
        some = rows.take(order[start : start + BATCH])
        ids = some["id"].to_numpy()
        options = {"num_contrastive": 2, "seed": 0, "epoch": epoch}
        views = train_views(some["image"].to_pylist(), ids, experiment.views, **options)
        yield {"views": views, "labels": some["label"].to_numpy().astype(np.int64), "ids": ids}
