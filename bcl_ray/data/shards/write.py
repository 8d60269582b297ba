"""Writing a data set, in two passes over the source's rows.

The first pass checks the selected rows of every split, and finds out their sizes. No shard is
written before all rows are checked. The second pass writes the shards, with rows in shuffled order.
Each pass consists of independent tasks, which `run` distributes. What they have done stays after a
kill, and the next attempt goes on from there (`attempt`). The shards' bytes are the same for any
number of processes.
"""

import hashlib
import logging
import re
from itertools import islice

import pyarrow as pa

from bcl_ray.data.shards.attempt import Attempt, ShardWork, is_output_name
from bcl_ray.data.shards.manifest import (
    FORMAT_VERSION,
    INCOMPLETE,
    MANIFEST,
    Manifest,
    ProfileInfo,
    Split,
    write_manifest,
)
from bcl_ray.data.shards.options import MAX_PIXELS, SHARD_BYTES, ShardOptions
from bcl_ray.data.shards.selection import Selection
from bcl_ray.data.shards.split_writer import SourceChangedError, write_split
from bcl_ray.data.sources import Source
from bcl_ray.experiment.choices import OnBadImage, Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.parallel import ParallelMap, Progress, map_here, no_progress
from bcl_ray.storage import files, paths, s3
from bcl_ray.storage.lease_request import acquire_lease

logger = logging.getLogger(__name__)


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
    run: ParallelMap = map_here,
) -> Manifest:
    """Write a source's splits as shards: the train split as a profile selects it, the others whole.

    Args:
        source: Source of the images.
        target: Folder or URI; must not hold a data set yet. If an attempt with the same arguments
            was interrupted, this one goes on.
        profile: Profile of the training split's class counts (`longtail.class_counts_for`).
        imbalance_factor: n_max / n_min, for the profiles exponential and step.
        max_per_class: Training images of the largest class. None: as many as there are.
        seed: Seed of the selection of images, and of the shuffle. The same source, profile and seed
            give the same rows in the same order; with the same pyarrow, the same bytes.
        shard_bytes: Target size of a shard.
        on_bad_image: stop: write nothing. skip: replace bad rows by others of their class, as far
            as the source has more than the profile selects, and list them in
            quarantine-<split>.jsonl.
        max_pixels: Largest allowed width x height of an image.
        progress: Called with a description, the rows done and the rows in total.
        run: Runs the tasks, here or elsewhere; see `machine.parallel`.

    Raises:
        LeaseHeldError: Another process is writing to the target.
        LeaseLostError: Another process has taken over, while this one was frozen or cut off.
        ValueError: An option is out of range, the target is in use, images are bad (the first ten
            are named), ids are repeated, or a class has no training images.
        OSError: The source or the target cannot be read or written.
    """
    profile_info = ProfileInfo(
        name=profile, imbalance_factor=imbalance_factor, max_per_class=max_per_class, seed=seed
    )
    options = ShardOptions(profile_info, shard_bytes, max_pixels, on_bad_image)
    options.check()
    _check_split_names(source)
    _check_target(target)
    selections = [Selection(source, name, profile_info) for name in source.splits]
    with acquire_lease(
        target, what=target, notify=logger.warning, wait=False, remove=True
    ) as lease:
        _check_target(target)  # again: another process may have written in between
        attempt = Attempt(paths.absolute(target), lease.fence)
        attempt.begin(_identity(source, options), logger.warning)
        work = ShardWork(attempt, run, progress)
        _check_rows(work, selections, options)
        splits = _write_splits(work, selections, shard_bytes)
        lease.check()
        manifest = _publish(target, source, splits, profile_info)
        attempt.end()
        return manifest


def _check_rows(work: ShardWork, selections: list[Selection], options: ShardOptions) -> None:
    """The first pass; a user's mistake ends the attempt, so that the target is free again."""
    try:
        for selection in selections:
            selection.check(work, options)
        if options.on_bad_image == "stop":
            _check_no_faults(selections)
    except UserError:
        work.attempt.end()
        raise


def _write_splits(
    work: ShardWork, selections: list[Selection], shard_bytes: int
) -> dict[str, Split]:
    """The second pass; if the source has changed, the first one is needed again."""
    try:
        return {
            selection.name: write_split(work, selection, shard_bytes) for selection in selections
        }
    except SourceChangedError:
        work.attempt.forget()
        raise


def _identity(source: Source, options: ShardOptions) -> str:
    """Hash of all that determines a data set's bytes, except for the images themselves."""
    names = (source.name, source.locations, source.class_names, tuple(source.splits))
    text = f"{FORMAT_VERSION} {pa.__version__} {names} {options.identity}"
    content = hashlib.sha256(text.encode())
    for split in source.splits.values():
        content.update(split.labels.tobytes())
        content.update(b"" if split.ids is None else split.ids.tobytes())
    return content.hexdigest()


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
    # Where an attempt was interrupted, such files are from it.
    if INCOMPLETE not in names and any(map(is_output_name, names)):
        raise UserError(
            f"{target} holds Parquet files that `bcl-ray shard` did not write: choose another "
            "target"
        )


def _check_no_faults(selections: list[Selection]) -> None:
    bad = sum(selection.num_faults for selection in selections)
    if not bad:
        return
    total = sum(selection.num_judged for selection in selections)
    faults = (
        f"\n  {selection.name} row {fault.row}, {fault.where}: {fault.fault}"
        for selection in selections
        for fault in selection.faults()
    )
    raise UserError(
        f"{bad:,} of {total:,} rows are bad, and nothing was written; repair them, or leave them "
        f"out with --on-bad-image skip. The first {min(10, bad)}:" + "".join(islice(faults, 10))
    )


def _publish(
    target: str, source: Source, splits: dict[str, Split], profile: ProfileInfo
) -> Manifest:
    """Write the manifest, which makes the folder a data set.

    A manifest that is there already is a second writer's, which the lease cannot keep away in a
    store without conditional writes. Two writers give their shards the same names, so each may have
    replaced shards of the other, and neither data set can be relied upon.
    """
    manifest = Manifest(
        class_names=source.class_names,
        splits=splits,
        source=source.name,
        profile=profile,
        fingerprint="",
    )
    try:
        return write_manifest(target, manifest)
    except FileExistsError:
        raise UserError(
            f"another `bcl-ray shard` has written to {target} at the same time, and the shards of "
            "both are mixed there: delete the folder, and shard again"
        ) from None
