"""Shards of images."""

from collections.abc import Callable, Sequence
from typing import Any

from bcl_ray.data.shards import MAX_PIXELS, Manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.display.terminal import progress_bars
from bcl_ray.experiment.choices import OnBadImage, Profile, load_plugins


def shard(
    source: str,
    target: str,
    *,
    path: str | None = None,
    profile: Profile = "natural",
    imbalance_factor: float | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
    shard_bytes: int = 256 * 2**20,
    on_bad_image: OnBadImage = "stop",
    max_pixels: int | None = None,
    plugins: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Manifest:
    """Turn a source of images into shards and their manifest.

        bcl_ray.shard("folder", "data/mine", path="photos")

    Args:
        source: its kind: digits, cifar10, cifar100, folder, list, parquet, or a plugin's.
        target: folder or URI for the shards.
        path: folder, file or URI that the source lies in.
        profile: class sizes of the training split: exponential, step or natural.
        imbalance_factor: largest class / smallest class, at least 1.
        max_per_class: training images of the largest class.
        seed: of the choice and of the order.
        shard_bytes: size of a shard, about.
        on_bad_image: stop, or skip: list bad rows in a quarantine file.
        max_pixels: largest width x height of an image; None: 2^26.
        plugins: modules that add sources.
        progress: takes what is done, how far, and of how much; None: a bar on a terminal.
        options: of the source: splits, classes, image_column, label_column, id_column.

    Raises:
        ValueError: an option that is missing or does not fit, or images that do not decode.
        OSError: something that cannot be read or written.
    """
    load_plugins(plugins)
    opened = open_source(source, path, **options)
    with progress_bars() as bars:
        return write_shards(
            opened,
            target,
            profile=profile,
            imbalance_factor=imbalance_factor,
            max_per_class=max_per_class,
            seed=seed,
            shard_bytes=shard_bytes,
            on_bad_image=on_bad_image,
            max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
            progress=progress or bars,
        )
