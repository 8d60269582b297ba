"""Cut a validation split out of a data set's training split."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.shards.manifest import Manifest, Progress, no_progress, read_manifest
from bcl_ray.data.shards.write import write_shards
from bcl_ray.data.sources import Content, Rows, Source, SourceSplit, parquet
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

VALIDATION = ("validation", "val")  # names of a split that a data set may have of its own


def own_validation(manifest: Manifest, eval_split: str) -> str | None:
    """The name of the validation split that a data set came with, if it has one.

    Args:
        manifest: of the data set.
        eval_split: on which the winner is tested, so that nothing may be chosen on it.
    """
    names = (name for name in VALIDATION if name in manifest.splits and name != eval_split)
    return next(names, None)


def held_out(class_counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Images of each class that are cut: its share, rounded, at least one, and never the last.

    Args:
        class_counts: of the whole training split, (K,).
        fraction: of each class, above 0 and below 1.

    Returns:
        (K,); 0 for a class of one image, which training needs.
    """
    share = np.floor(class_counts * fraction + 0.5).astype(np.int64)
    held: NDArray[np.int64] = np.minimum(np.maximum(share, 1), np.maximum(class_counts - 1, 0))
    return held


def hold_out(
    uri: str,
    target: str,
    fraction: float,
    seed: int,
    *,
    split: str = "train",
    progress: Progress = no_progress,
) -> Manifest:
    """Write a data set whose splits are two parts of another's training split.

    Args:
        uri: folder or URI of the data set, which stays as it is.
        target: folder or URI for the new one, with splits `train` and `validation`. Both have the
            class profile of the whole (see `held_out`); ids are kept.
        fraction: of each class that becomes validation, above 0 and below 1.
        seed: of the choice.
        split: name of the training split.
        progress: as of `write_shards`.

    Raises:
        ValueError: a fraction out of range, no such split, or a target in use.
        OSError: a place cannot be read or written.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation share ({fraction:g}) must be above 0 and below 1")
    manifest = read_manifest(uri)
    if split not in manifest.splits:
        raise UserError(f"{uri} has no split '{split}': it has {', '.join(manifest.splits)}")
    whole = _whole(uri, manifest, split)
    counts = held_out(np.array(manifest.splits[split].class_counts), fraction)
    if counts.sum() == 0:
        raise UserError(f"{uri}: no class of '{split}' has two images, so none can be cut")
    chosen = _chosen(whole.labels, counts, seed)
    rest = np.setdiff1d(np.arange(len(whole.labels)), chosen)
    source = Source(
        f"{manifest.source}, {100 * fraction:g} % held out",
        manifest.class_names,
        {"train": _part(whole, rest), "validation": _part(whole, chosen)},
    )
    return write_shards(source, target, seed=seed, progress=progress)


def _whole(uri: str, manifest: Manifest, split: str) -> SourceSplit:
    """A split of shards as a source."""
    uris = [files.join(uri, shard.file) for shard in manifest.splits[split].shards]
    return parquet({"train": uris}, id_column="id").splits["train"]


def _chosen(labels: Rows, counts: NDArray[np.int64], seed: int) -> Rows:
    """Rows to cut, rising: so many of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], np.arange(len(counts)))
    kept = [by_class[start : start + n] for start, n in zip(starts, counts, strict=True)]
    return np.sort(np.concatenate(kept))


def _part(whole: SourceSplit, rows: Rows) -> SourceSplit:
    def read(chosen: Rows) -> Iterator[Content]:
        return whole.read(rows[chosen])

    ids: Any = whole.ids
    return SourceSplit(
        whole.labels[rows],
        read,
        lambda row: whole.where(int(rows[row])),
        random_order=True,
        ids=ids[rows],
    )
