"""Sizes of the recipes' data sets as published, to plan for shards that are not written yet."""

from dataclasses import dataclass

import numpy as np

from bcl_ray.data.shards import (
    SHARD_BYTES,
    Manifest,
    NumberedNames,
    ProfileInfo,
    ShardColumns,
    Split,
)
from bcl_ray.data.shards.split_writer import num_shards, row_group_rows
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """Images and classes of a data set, and the mean size of an encoded image."""

    train: int
    test: int
    classes: int
    mean_bytes: int
    validation: int  # 0 without such a split
    one_size: bool  # whether all images have views.image_size
    source: str


SIZES = {
    "digits_lt": Sizes(392, 360, 10, 130, 0, True, "measured: PNGs of scikit-learn, factor 50"),
    "cifar10_lt": Sizes(12_406, 10_000, 10, 2_000, 0, True, "measured: PNGs, factor 100"),
    "cifar100_lt": Sizes(10_847, 10_000, 100, 2_000, 0, True, "measured: PNGs, factor 100"),
    "imagenet_lt": Sizes(
        115_846,
        50_000,
        1000,
        110_000,
        20_000,
        False,
        "published lists; assumption: 110 kB an image",
    ),
    "inat18": Sizes(
        437_513, 24_426, 8142, 260_000, 0, False, "published lists; assumption: 260 kB an image"
    ),
}
"""By the recipe's name."""


def expected_manifest(experiment: Experiment) -> Manifest:
    """The manifest that `bcl-ray shard` would write, without hashes and class sizes.

    Raises:
        UserError: The experiment's recipe is not one of those with published sizes.
    """
    if experiment.name not in SIZES:
        raise UserError(
            f"{experiment.data.path} holds no shards, and '{experiment.name}' has no published "
            f"sizes, as {', '.join(SIZES)} have: write shards with `bcl-ray shard`, and plan again"
        )
    sizes, data = SIZES[experiment.name], experiment.data
    rows = {data.train_split: sizes.train, data.eval_split: sizes.test}
    if data.validation_split is not None and sizes.validation:
        rows[data.validation_split] = sizes.validation
    return Manifest(
        class_names=tuple(map(str, range(sizes.classes))),
        splits={name: _split(name, count, sizes.mean_bytes) for name, count in rows.items()},
        source=sizes.source,
        profile=ProfileInfo(name="natural", imbalance_factor=None, max_per_class=None, seed=0),
        fingerprint="",
    )


def _split(name: str, rows: int, mean_bytes: int) -> Split:
    group_rows = row_group_rows(rows, mean_bytes)
    shards = num_shards(rows, rows * mean_bytes, group_rows, SHARD_BYTES)
    counts = np.diff(np.arange(shards + 1) * rows // shards)
    hashes = np.zeros((shards, 32), np.uint8)
    columns = ShardColumns(NumberedNames(name, shards), counts, counts * mean_bytes, hashes)
    return Split(rows=rows, class_counts=(), row_group_rows=group_rows, shards=columns)
