"""Writing shards, in two passes.

The first stages the chosen rows of every split: checked, and copied to local disk. Nothing is
in the target until all of them are known to be good. The second deals them out in shuffled
order. Either holds a few images and a few numbers per row in memory.
"""

import hashlib
import io
import json
import logging
import re
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bcl_ray.data.longtail import class_counts_for, kept_rows
from bcl_ray.data.shards.manifest import (
    FORMAT_VERSION,
    INCOMPLETE,
    MANIFEST,
    Manifest,
    ProfileInfo,
    Progress,
    ShardInfo,
    Split,
    no_progress,
)
from bcl_ray.data.shards.staging import Staged, known_faults, stage
from bcl_ray.data.sources import Rows, Source
from bcl_ray.experiment.choices import OnBadImage, Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, s3
from bcl_ray.storage.lease import Lease, acquire_lease

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20
MAX_PIXELS = 1 << 26
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
    ]
)


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
    """Write a source's splits as shards; the train split thinned to a profile, the others whole.

    Args:
        source: where the images come from.
        target: folder or URI; must hold no data set yet.
        profile: shape of the training split's class counts (`longtail.class_counts_for`).
        imbalance_factor: n_max / n_min of the profiles exponential and step.
        max_per_class: training images of the largest class; None: as many as there are.
        seed: of the choice of images and of the shuffle. The same source, profile and seed give
            the same rows in the same order; with the same pyarrow, the same bytes.
        shard_bytes: size of a shard that is aimed at.
        on_bad_image: stop: write nothing. skip: list bad rows in quarantine-<split>.jsonl.
        max_pixels: width x height of an image, at most.
        progress: called with a stage, the rows done and the rows in all.

    Raises:
        LeaseHeldError: another process writes there.
        LeaseLostError: another has taken over, while this one was frozen or cut off.
        ValueError: an option out of range, a target in use, bad images (the first ten and their
            number), ids that repeat, or a class without training images.
        OSError: the source, the target or the temporary folder cannot be read or written.
    """
    if profile == "natural" and imbalance_factor is not None:
        raise UserError("imbalance_factor does nothing for profile 'natural': leave it out")
    for option, value in (("shard_bytes", shard_bytes), ("max_pixels", max_pixels)):
        if value < 1:
            raise UserError(f"{option} ({value}) must be at least 1")
    if on_bad_image not in ("stop", "skip"):
        raise UserError(f"on_bad_image '{on_bad_image}' must be stop or skip")
    if seed < 0:
        raise UserError(f"seed ({seed}) must be at least 0")
    _check_names(source)
    _check_target(target)
    chosen = ProfileInfo(
        name=profile, imbalance_factor=imbalance_factor, max_per_class=max_per_class, seed=seed
    )
    with ExitStack() as stack:
        staged = {
            name: stack.enter_context(closing(_stage(source, name, chosen, max_pixels, progress)))
            for name in source.splits
        }
        _check_staged(staged, source.class_names, on_bad_image)
        lease = stack.enter_context(
            acquire_lease(target, target, logger.warning, wait=False, remove=True)
        )
        _check_target(target)  # another may have written meanwhile
        _start(target)
        splits = {
            name: _write_split(
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
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            class_names=source.class_names,
            splits=splits,
            source=source.name,
            profile=chosen,
            fingerprint="",
        )
        manifest = manifest.model_copy(update={"fingerprint": manifest.content_fingerprint()})
        lease.check()
        _publish(target, manifest)
    return manifest


def _publish(target: str, manifest: Manifest) -> None:
    """Make a folder a data set; of two writers at once, the second is refused.

    The lease keeps a second one off earlier, where the store compares before it writes. Else
    their shards have the same names, so that neither's can be relied upon afterwards.
    """
    try:
        files.create_bytes(
            files.join(target, MANIFEST), manifest.model_dump_json(indent=2).encode()
        )
    except FileExistsError:
        raise UserError(
            f"another `bcl-ray shard` has written to {target} at the same time, and the shards of "
            "both are mixed there: delete the folder, and shard again"
        ) from None
    files.delete(files.join(target, INCOMPLETE))


def row_group_rows(rows: int, mean_bytes: int) -> int:
    """Rows per row group: small enough to stream (8 MiB), numerous enough to deal out (64)."""
    return max(1, min(256, (8 << 20) // max(mean_bytes, 1), rows // 64))


def num_shards(rows: int, total_bytes: int, group_rows: int, shard_bytes: int) -> int:
    """As many shards as `shard_bytes` asks for, and at least 8 where each gets a row group."""
    wanted = max(-(-total_bytes // shard_bytes), min(8, rows // group_rows))
    return max(1, min(rows, wanted))


def _check_names(source: Source) -> None:
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
    if INCOMPLETE not in names and any(_is_ours(name) for name in names):
        raise UserError(
            f"{target} holds Parquet files that `bcl-ray shard` did not write: choose another "
            "target"
        )


def _is_ours(name: str) -> bool:
    return name.endswith((".parquet", ".tmp")) or name.startswith("quarantine-")


def _start(target: str) -> None:
    """Mark the folder, and remove what an interrupted attempt left in it."""
    note = b"`bcl-ray shard` is writing here, or was interrupted; run it again to start over.\n"
    files.write_bytes(files.join(target, INCOMPLETE), note)
    for name in files.list_files(target):
        if _is_ours(name):
            files.delete(files.join(target, name))


def _stage(
    source: Source, name: str, profile: ProfileInfo, max_pixels: int, progress: Progress
) -> Staged:
    split, num_classes = source.splits[name], len(source.class_names)
    faults = known_faults(split, num_classes)
    sound = np.ones(len(split.labels), dtype=bool)
    sound[list(faults)] = False
    if name == "train":
        labels = np.where(sound, split.labels, -1)
        available = np.bincount(labels[sound], minlength=num_classes)
        first = next((f"; a bad row, {split.where(row)}: {faults[row]}" for row in faults), "")
        _check_classes(available, source.class_names, hint=first)
        counts = class_counts_for(
            profile.name,
            available,
            imbalance_factor=profile.imbalance_factor,
            max_per_class=profile.max_per_class,
        )
        rows = kept_rows(labels, counts, seed=profile.seed, random_order=split.random_order)
    else:
        rows = np.flatnonzero(sound)
    return stage(
        split,
        rows,
        faults,
        max_pixels=max_pixels,
        report=lambda done, total: progress(f"reading {name}", done, total),
    )


def _check_staged(
    staged: dict[str, Staged], class_names: tuple[str, ...], on_bad_image: str
) -> None:
    faults = [(name, fault) for name, split in staged.items() for fault in split.faults]
    if faults and on_bad_image == "stop":
        total = sum(split.rows for split in staged.values()) + len(faults)
        first = "".join(
            f"\n  {name} row {fault.row}, {fault.where}: {fault.fault}"
            for name, fault in faults[:10]
        )
        raise UserError(
            f"{len(faults):,} of {total:,} rows are bad, and nothing was written; mend them, or "
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


def _write_split(
    target: str,
    name: str,
    staged: Staged,
    *,
    num_classes: int,
    shard_bytes: int,
    seed: int,
    progress: Progress,
    lease: Lease,
) -> Split:
    group_rows = row_group_rows(staged.rows, staged.total_bytes // staged.rows)
    shards = num_shards(staged.rows, staged.total_bytes, group_rows, shard_bytes)
    order = np.random.default_rng([seed, *name.encode()]).permutation(staged.rows)
    infos, done = [], 0
    for index, rows in enumerate(np.array_split(order, shards)):
        lease.check()
        infos.append(_write_shard(target, f"{name}-{index:05d}.parquet", staged, rows, group_rows))
        done += len(rows)
        progress(f"writing {name}", done, staged.rows)
    if staged.faults:
        lines = [json.dumps(fault._asdict()) + "\n" for fault in staged.faults]
        uri = files.join(target, f"quarantine-{name}.jsonl")
        files.write_bytes(uri, "".join(lines).encode())
    return Split(
        rows=staged.rows,
        class_counts=tuple(staged.class_counts(num_classes).tolist()),
        row_group_rows=group_rows,
        shards=tuple(infos),
        quarantined=len(staged.faults),
    )


class _Hashing(io.RawIOBase):
    """Passes bytes on to a sink; counts and hashes them on the way."""

    def __init__(self, sink: Any) -> None:
        self.sink, self.size, self.sha256 = sink, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sink.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


def _write_shard(target: str, file: str, staged: Staged, rows: Rows, group_rows: int) -> ShardInfo:
    with files.open_write(files.join(target, file)) as sink:
        hashing = _Hashing(sink)
        options = {"compression": "none", "use_dictionary": False}
        # The statistics of a row group would be two whole images.
        with pq.ParquetWriter(
            hashing, SCHEMA, write_statistics=["id", "label"], **options
        ) as writer:
            for start in range(0, len(rows), group_rows):
                columns = staged.columns(rows[start : start + group_rows])
                writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=group_rows)
    return ShardInfo(
        file=file, rows=len(rows), bytes=hashing.size, sha256=hashing.sha256.hexdigest()
    )
