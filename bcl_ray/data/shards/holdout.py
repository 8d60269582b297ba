"""Splitting validation data off the training split of a data set."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.shards.manifest import Manifest, read_manifest
from bcl_ray.data.shards.write import write_shards
from bcl_ray.data.sources import Rows, Source, SourceSplit, parquet
from bcl_ray.experiment.options import DataConfig, Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.parallel import Progress, no_progress
from bcl_ray.storage import files

VALIDATION = ("validation", "val")  # names that a data set's own validation split may have


def own_validation(manifest: Manifest, data: DataConfig) -> str | None:
    """The name of a data set's own validation split, or None.

    Args:
        manifest: Manifest of the data set.
        data: `validation_split`, if it is set; never `eval_split`, on which the winner of a search
            is tested: nothing may be selected on test data.
    """
    names = [name for name in VALIDATION if name in manifest.splits and name != data.eval_split]
    return data.validation_split or next(iter(names), None)


def selected_on(experiment: Experiment) -> str | None:
    """The validation split by which a run's best checkpoint is selected.

    None if it is selected on the split for results. Trials of a search, and runs from before there
    was data.validation_split, may have a validation split as data.eval_split.
    """
    data = experiment.data
    own = data.eval_split if data.eval_split in VALIDATION else None
    return data.validation_split or own


def validation_counts(class_counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Validation images of each class: its share, rounded, but at least one and never all.

    Args:
        class_counts: Images of each class in the whole training split, (K,).
        fraction: Share of each class, above 0 and below 1.

    Returns:
        Counts, (K,); 0 for a class of one image, which training needs.
    """
    shares = np.floor(class_counts * fraction + 0.5).astype(np.int64)
    counts: NDArray[np.int64] = np.minimum(np.maximum(shares, 1), np.maximum(class_counts - 1, 0))
    return counts


def hold_out(
    uri: str,
    target: str,
    fraction: float,
    seed: int,
    *,
    split: str = "train",
    keep_others: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a data set whose splits are two parts of another data set's training split.

    Args:
        uri: Folder or URI of the data set, which is not changed.
        target: Folder or URI of the new data set, with splits `train` and `validation`. Both have
            the class profile of the whole (see `validation_counts`), and images keep their ids.
        fraction: Share of each class that becomes validation data, above 0 and below 1.
        split: Name of the training split.
        keep_others: Whether to copy the other splits as they are.
        progress: As in `write_shards`.

    Raises:
        ValueError: The fraction is out of range, there is no such split, or the target is in use.
        OSError: A folder cannot be read or written.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation share ({fraction:g}) must be above 0 and below 1")
    manifest = read_manifest(uri)
    if split not in manifest.splits:
        raise UserError(f"{uri} has no split '{split}': it has {', '.join(manifest.splits)}")
    if keep_others and "validation" in manifest.splits:
        raise UserError(f"{uri} has a split 'validation': set data.validation_split=validation")
    shards = {
        # The source needs a training split, whatever its name is here.
        "train" if name == split else name: [files.join(uri, shard) for shard in found.shards.names]
        for name, found in manifest.splits.items()
        if name == split or (keep_others and name != "train")
    }
    splits = dict(parquet(shards, id_column="id").splits)
    whole = splits.pop("train")
    counts = validation_counts(np.array(manifest.splits[split].class_counts), fraction)
    if counts.sum() == 0:
        raise UserError(f"{uri}: no class of '{split}' has two images, so none can be held out")
    validation = _select(whole.labels, counts, seed)
    training = np.setdiff1d(np.arange(len(whole.labels)), validation)
    source = Source(
        f"{manifest.source}, {100 * fraction:g} % held out",
        manifest.class_names,
        {"train": _part(whole, training), "validation": _part(whole, validation), **splits},
    )
    return write_shards(source, target, seed=seed, progress=progress)


def _select(labels: Rows, counts: NDArray[np.int64], seed: int) -> Rows:
    """Select counts[k] random rows of each class k; returns them in rising order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], np.arange(len(counts)))
    rows = [by_class[start : start + n] for start, n in zip(starts, counts, strict=True)]
    return np.sort(np.concatenate(rows))


def _part(whole: SourceSplit, rows: Rows) -> SourceSplit:
    """A split of some rows of another split."""
    ids: Any = whole.ids
    return replace(
        whole,
        labels=whole.labels[rows],
        read=lambda part_rows: whole.read(rows[part_rows]),
        where=lambda row: whole.where(int(rows[row])),
        ids=ids[rows],
        faults={
            part_row: whole.faults[row]
            for part_row, row in enumerate(rows.tolist())
            if row in whole.faults
        },
    )
