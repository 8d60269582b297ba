"""Writing a data set, in two passes.

The first pass stages the selected rows of every split: they are checked, and copied to the local
disk. Nothing is written to the target before all rows are checked. The second pass writes them as
shards, in shuffled order. In either pass, memory holds a few images, and a few numbers per row.
"""

import logging
import re
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.longtail import class_counts_for, select_rows
from bcl_ray.data.shards.manifest import (
    FORMAT_VERSION,
    INCOMPLETE,
    MANIFEST,
    Manifest,
    ProfileInfo,
    Progress,
    Split,
    no_progress,
    write_manifest,
)
from bcl_ray.data.shards.split_writer import write_split
from bcl_ray.data.shards.staging import Staged, faults_without_images, stage
from bcl_ray.data.sources import Source
from bcl_ray.experiment.choices import OnBadImage, Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, s3
from bcl_ray.storage.lease_request import acquire_lease

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20
MAX_PIXELS = 1 << 26


def write_shards(
    source: Source,
    target: str,
    *,
    profile: Profile = "natural",
    imbalance_factor: float | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    on_bad_image: OnBadImage = "stop",
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a source's splits as shards: the train split as a profile selects it, the others whole.

    Args:
        source: Source of the images.
        target: Folder or URI; must not hold a data set yet.
        profile: Profile of the training split's class counts (`longtail.class_counts_for`).
        imbalance_factor: n_max / n_min, for the profiles exponential and step.
        max_per_class: Training images of the largest class. None: as many as there are.
        seed: Seed of the selection of images, and of the shuffle. The same source, profile and seed
            give the same rows in the same order; with the same pyarrow, the same bytes.
        shard_bytes: Target size of a shard.
        on_bad_image: stop: write nothing. skip: list bad rows in quarantine-<split>.jsonl.
        max_pixels: Largest allowed width x height of an image.
        progress: Called with a description, the rows done and the rows in total.

    Raises:
        LeaseHeldError: Another process is writing to the target.
        LeaseLostError: Another process has taken over, while this one was frozen or cut off.
        ValueError: An option is out of range, the target is in use, images are bad (the first ten
            are named), ids are repeated, or a class has no training images.
        OSError: The source, the target or the temporary folder cannot be read or written.
    """
    info = ProfileInfo(
        name=profile, imbalance_factor=imbalance_factor, max_per_class=max_per_class, seed=seed
    )
    _check_options(info, shard_bytes, on_bad_image, max_pixels)
    _check_split_names(source)
    _check_target(target)
    with ExitStack() as stack:
        staged = {
            name: stack.enter_context(closing(_stage(source, name, info, max_pixels, progress)))
            for name in source.splits
        }
        _check_staged(staged, source.class_names, on_bad_image)
        lease = stack.enter_context(
            acquire_lease(target, what=target, notify=logger.warning, wait=False, remove=True)
        )
        _check_target(target)  # again: another process may have written while this one staged
        _begin_writing(target)
        splits = {
            name: write_split(
                target,
                name,
                split,
                num_classes=len(source.class_names),
                shard_bytes=shard_bytes,
                seed=seed,
                progress=progress,
                lease=lease,
            )
            for name, split in staged.items()
        }
        lease.check()
        return _publish(target, source, splits, info)


def _check_options(
    profile: ProfileInfo, shard_bytes: int, on_bad_image: OnBadImage, max_pixels: int
) -> None:
    if profile.name == "natural" and profile.imbalance_factor is not None:
        raise UserError("imbalance_factor does nothing for profile 'natural': leave it out")
    for option, value, least in (
        ("shard_bytes", shard_bytes, 1),
        ("max_pixels", max_pixels, 1),
        ("seed", profile.seed, 0),
    ):
        if value < least:
            raise UserError(f"{option} ({value}) must be at least {least}")
    if on_bad_image not in ("stop", "skip"):
        raise UserError(f"on_bad_image '{on_bad_image}' must be stop or skip")


def _check_split_names(source: Source) -> None:
    if "train" not in source.splits:
        raise UserError(f"source '{source.name}' has no split 'train'")
    for name in source.splits:
        if re.fullmatch(r"[A-Za-z0-9_]+", name) is None:
            raise UserError(f"split name '{name}' must consist of letters, digits and '_'")


def _check_target(target: str) -> None:
    files.check_usable(target, *s3.ACTIONS)
    names = files.list_files(target)
    if MANIFEST in names:
        raise UserError(
            f"{target} already holds a data set: choose another target, or delete that one first"
        )
    # Where an attempt was interrupted, such files are its own, and `_begin_writing` deletes them.
    if INCOMPLETE not in names and any(_is_named_like_ours(name) for name in names):
        raise UserError(
            f"{target} holds Parquet files that `bcl-ray shard` did not write: choose another "
            "target"
        )


def _is_named_like_ours(name: str) -> bool:
    """Whether a file has a name like those that this module writes, whoever wrote it."""
    return name.endswith((".parquet", ".tmp")) or name.startswith("quarantine-")


def _stage(
    source: Source, name: str, profile: ProfileInfo, max_pixels: int, progress: Progress
) -> Staged:
    """Select the rows of a split, and stage them."""
    split, num_classes = source.splits[name], len(source.class_names)
    faults = faults_without_images(split, num_classes)
    is_valid = np.ones(len(split.labels), dtype=bool)
    is_valid[list(faults)] = False
    if name == "train":
        labels = np.where(is_valid, split.labels, -1)
        available = np.bincount(labels[is_valid], minlength=num_classes)
        # A class may be empty because its rows are bad: the message names one bad row.
        hint = next((f"; a bad row, {split.where(row)}: {faults[row]}" for row in faults), "")
        _check_classes(available, source.class_names, hint=hint)
        counts = class_counts_for(
            profile.name,
            available,
            imbalance_factor=profile.imbalance_factor,
            max_per_class=profile.max_per_class,
        )
        rows = select_rows(labels, counts, seed=profile.seed, random_order=split.random_order)
    else:
        rows = np.flatnonzero(is_valid)
    return stage(
        split,
        rows,
        faults,
        max_pixels=max_pixels,
        progress=lambda done, total: progress(f"reading {name}", done, total),
    )


def _check_staged(
    staged: dict[str, Staged], class_names: tuple[str, ...], on_bad_image: OnBadImage
) -> None:
    faults = [(name, fault) for name, split in staged.items() for fault in split.faults]
    if faults and on_bad_image == "stop":
        total = sum(split.rows for split in staged.values()) + len(faults)
        first = "".join(
            f"\n  {name} row {fault.row}, {fault.where}: {fault.fault}"
            for name, fault in faults[:10]
        )
        raise UserError(
            f"{len(faults):,} of {total:,} rows are bad, and nothing was written; repair them, or "
            f"leave them out with --on-bad-image skip. The first {min(10, len(faults))}:{first}"
        )
    _check_classes(staged["train"].class_counts(len(class_names)), class_names)
    for name, split in staged.items():
        if split.rows == 0:
            raise UserError(f"split '{name}' has no images: leave it out of the source")


def _check_classes(
    class_counts: NDArray[np.int64], class_names: tuple[str, ...], hint: str = ""
) -> None:
    empty = np.flatnonzero(class_counts == 0)
    if empty.size:
        names = ", ".join(f"{label} ({class_names[label]})" for label in empty[:10])
        raise UserError(
            f"{empty.size} of {len(class_counts)} classes have no training images: {names}; add "
            f"images, or remove the classes from the source{hint}"
        )


def _begin_writing(target: str) -> None:
    """Mark the folder as incomplete, and delete the files of an interrupted attempt."""
    note = b"`bcl-ray shard` is writing here, or was interrupted; run it again to start over.\n"
    files.write_bytes(files.join(target, INCOMPLETE), note)
    for name in files.list_files(target):
        if _is_named_like_ours(name):
            files.delete(files.join(target, name))


def _publish(
    target: str, source: Source, splits: dict[str, Split], profile: ProfileInfo
) -> Manifest:
    """Write the manifest, which makes the folder a data set.

    A manifest that is there already is a second writer's, which the lease cannot keep away in a
    store without conditional writes. Two writers give their shards the same names, so each may have
    replaced shards of the other, and neither data set can be relied upon.
    """
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        class_names=source.class_names,
        splits=splits,
        source=source.name,
        profile=profile,
        fingerprint="",
    )
    try:
        manifest = write_manifest(target, manifest)
    except FileExistsError:
        raise UserError(
            f"another `bcl-ray shard` has written to {target} at the same time, and the shards of "
            "both are mixed there: delete the folder, and shard again"
        ) from None
    files.delete(files.join(target, INCOMPLETE))
    return manifest
