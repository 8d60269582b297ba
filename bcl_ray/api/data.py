"""Write shards of images."""

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
    """Write the images of a source as shards, with a manifest.

        bcl_ray.shard("folder", "data/mine", path="photos")

    Args:
        source: Kind of the source; `bcl-ray shard --help` lists them. A plugin may add one.
        target: Folder or URI for the shards.
        path: Folder, file or URI of the source.
        profile: Class sizes of the training split: exponential, step or natural.
        imbalance_factor: Largest class size divided by the smallest, at least 1.
        max_per_class: Training images of the largest class, at least 1.
        seed: Seed for the selection and the order of images.
        shard_bytes: Approximate size of a shard in bytes.
        on_bad_image: "stop", or "skip" to leave bad images out and list them in a file.
        max_pixels: Largest width x height of an image; None for 2^26.
        plugins: Modules that add sources.
        progress: Called with the name of the current task, the number of images done, and their
            total; None for a progress bar on a terminal.
        options: Options of the source: splits, classes, image_column, label_column, id_column.

    Returns:
        The manifest of the shards.

    Raises:
        ValueError: An option is missing or does not fit, or an image cannot be decoded.
        OSError: A file cannot be read or written.
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
