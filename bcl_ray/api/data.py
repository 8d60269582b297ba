"""Write shards of images."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bcl_ray.data.shards import MAX_PIXELS, Manifest, write_shards
from bcl_ray.data.sources import Source, open_source
from bcl_ray.data.sources.orientation import with_orientation_applied
from bcl_ray.display.terminal import progress_bars
from bcl_ray.experiment.choices import OnBadImage, Orientation, Profile, load_plugins
from bcl_ray.machine import container
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.messages import notify
from bcl_ray.machine.parallel import ParallelMap, run_in_processes
from bcl_ray.storage import paths

if TYPE_CHECKING:
    from bcl_ray.ray_runtime.connection import Resources

# A process is started for each so many rows, because its start takes about as long as checking that
# many small images.
ROWS_PER_PROCESS = 4096


def shard(
    source: str,
    target: str,
    *,
    path: str | None = None,
    profile: Profile | None = None,
    imbalance_factor: float | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
    shard_bytes: int = 256 * 2**20,
    on_bad_image: OnBadImage = "stop",
    orientation: Orientation = "ignore",
    max_pixels: int | None = None,
    plugins: Sequence[str] = (),
    cpus: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Manifest:
    """Write the images of a source as shards, with a manifest.

        bcl_ray.shard("folder", "data/mine", path="photos")

    All CPUs of this machine work; or those of all nodes, if this process is connected to Ray or
    RAY_ADDRESS names a cluster. After a kill, the same call goes on.

    Args:
        source: Kind of the source; `bcl-ray shard --help` lists them. A plugin may add one.
        target: Folder or URI for the shards.
        path: Folder, file or URI of the source.
        profile: Class sizes of the training split: exponential, step or natural. None: exponential
            with an imbalance factor, otherwise natural.
        imbalance_factor: Largest class size divided by the smallest, at least 1.
        max_per_class: Training images of the largest class, at least 1.
        seed: Seed for the selection and the order of images.
        shard_bytes: Approximate size of a shard in bytes.
        on_bad_image: "stop", or "skip" to leave bad images out and list them in a file.
        orientation: "ignore" the orientation in images' EXIF, as published pipelines do, or "apply"
            it: then images that are not upright are stored as PNGs that are.
        max_pixels: Largest width x height of an image; None for 2^26.
        plugins: Modules that add sources.
        cpus: CPUs to use at most; None for all.
        progress: Called with the name of the current task, the number of images done, and their
            total; None for a progress bar on a terminal.
        options: Options of the source: splits (files or folders by split), classes, image_column,
            label_column, id_column.

    Returns:
        The manifest of the shards.

    Raises:
        ValueError: An option is missing or does not fit, or an image cannot be decoded.
        OSError: A file cannot be read or written.
    """
    load_plugins(plugins)
    if cpus is not None and cpus < 1:
        raise UserError(f"--cpus ({cpus}) must be at least 1")
    if orientation not in ("ignore", "apply"):
        raise UserError(f"orientation '{orientation}' must be ignore or apply")
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    opened = open_source(source, path, **options)
    for note in opened.notes:
        notify(note)
    if orientation == "apply":
        opened = with_orientation_applied(opened, max_pixels)
    with progress_bars() as bars, _workers(opened, target, cpus) as run:
        return write_shards(
            opened,
            target,
            profile=profile or ("natural" if imbalance_factor is None else "exponential"),
            imbalance_factor=imbalance_factor,
            max_per_class=max_per_class,
            seed=seed,
            shard_bytes=shard_bytes,
            on_bad_image=on_bad_image,
            max_pixels=max_pixels,
            progress=progress or bars,
            run=run,
        )


@contextmanager
def _workers(source: Source, target: str, cpus: int | None) -> Iterator[ParallelMap]:
    """What runs tasks: processes of this machine, or of all nodes if there is a cluster."""
    ray = sys.modules.get("ray")
    address = os.environ.get("RAY_ADDRESS", "")
    is_dashboard = address.startswith(("http://", "https://"))  # it takes jobs, not drivers
    if (address and not is_dashboard) or (ray is not None and ray.is_initialized()):
        from bcl_ray.ray_runtime.cluster_map import map_on_cluster
        from bcl_ray.ray_runtime.connection import connected

        with connected() as resources:
            _check_locations(source, paths.absolute(target), resources)
            yield functools.partial(map_on_cluster, cpus=cpus)
        return
    if is_dashboard:
        notify("sharding on this machine; `bcl-ray submit shard ...` does it on the cluster")
    rows = sum(len(split.labels) for split in source.splits.values())
    available = int(container.cpus()) if cpus is None else cpus
    with run_in_processes(max(1, min(available, rows // ROWS_PER_PROCESS))) as run:
        yield run


def _check_locations(source: Source, target: str, resources: "Resources") -> None:
    """Refuse a source or a target that some node cannot use."""
    from bcl_ray.ray_runtime import access
    from bcl_ray.ray_runtime.connection import local_path_message

    uses = {f"the source ({uri})": (uri, {"list", "read"}) for uri in source.locations}
    uses[f"TARGET ({target})"] = (target, {"list", "read", "write", "delete"})
    for what, (uri, _) in uses.items():
        if resources.several_nodes and "://" not in uri:
            raise UserError(local_path_message(what, resources))
    access.check_everywhere(uses, per_worker={"CPU": 1})
