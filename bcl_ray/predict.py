"""Label images with a trained model: Ray Data reads them on CPUs, actors run the network.

A batch of images is read and decoded by a task, goes through the network at once, and comes
back to the driver in order, which cuts parts from it and writes them. So the same images give
the same tables, whatever the cluster; with another kind of processor, or another batch size,
they differ by rounding. What is held is a part's rows in the driver, and what Ray Data has in
flight.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from bcl_ray import access, runs, storage
from bcl_ray.cluster import Resources, connected, one_line
from bcl_ray.data import Unhurried
from bcl_ray.inputs import Folder, Images, list_folder, read_batch, shards_of
from bcl_ray.labeller import Labeller
from bcl_ray.models import OpenModel, open_model
from bcl_ray.outputs import Classes, Output, Request, Summary, table_of
from bcl_ray.shards import MANIFEST, Manifest, read_manifest

Follow = Callable[[dict[str, Any]], None]
Columns = dict[str, NDArray[Any]]

TICK = 0.5  # seconds between two events of progress
LATE = 120.0  # seconds; starting Ray's processes and the network takes some 20
# Of a CPU, where there are no GPUs; the network has the rest. Whole CPUs for actors would leave
# none to read with, and Ray Data would make one of two stages that ask for the same.
READ_CPUS = 0.25


class PredictionError(RuntimeError):
    """Labelling began and failed; what is written stays."""


@dataclass(frozen=True)
class Options:
    """How to label.

    Args:
        last: of a run, its last checkpoint instead of the best.
        split: of shards; None: the one that the model's run evaluates on.
        top: classes to name of each image, at most all.
        embeddings: give the backbone's embeddings too.
        csv: write tables as CSV too, without embeddings.
        batch_size: images that the network takes at once.
        part_size: images per file of the result, a multiple of batch_size.
        resume: go on with what the output holds, if anything.
    """

    last: bool = False
    split: str | None = None
    top: int = 5
    embeddings: bool = False
    csv: bool = False
    batch_size: int = 128
    part_size: int = 4096
    resume: bool = False

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: naming the option.
        """
        for option, value in (("--top", self.top), ("--batch-size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{option} ({value}) must be at least 1")
        if self.part_size < 1 or self.part_size % self.batch_size:
            raise ValueError(
                f"--part-size ({self.part_size}) must be a multiple of --batch-size "
                f"({self.batch_size})"
            )


def predict(
    name: str, images: str, target: str, root: str, options: Options, *, follow: Follow
) -> Summary:
    """Label all images of a folder, prefix or data set, and write tables of it.

    Args:
        name: of the model, as `open_model` takes it.
        images: folder or URI of images, at any depth, or of shards.
        target: folder or URI for the result: see `outputs`.
        root: folder or URI that holds runs.
        options: how.
        follow: called with events: `predicting`, `images`.

    Raises:
        ValueError: something that cannot work, or other predictions in `target`; before anything
            is written, but for finding that there are no images.
        PredictionError: it began and failed.
    """
    options.check()
    images, target = runs.absolute(images), runs.absolute(target)
    if f"{target.rstrip('/')}/".startswith(f"{images.rstrip('/')}/"):
        raise ValueError(f"OUTPUT ({target}) lies in INPUT, and would be labelled: name another")
    model = open_model(name, root, last=options.last)
    manifest = _manifest(images, options)
    output = Output(target, _request(model, images, manifest, options))
    output.check(resume=options.resume)
    with connected() as resources:
        _check_places(model, images, target, resources)
        output.begin()
        opened = _opened(output, manifest, follow)
        parts = -(-opened.total // options.part_size)
        done = output.parts()
        follow(
            {
                "kind": "predicting",
                "model": name,
                "checkpoint": runs.shown(model.uri),
                "images": runs.shown(images),
                "output": runs.shown(target),
                "total": opened.total,
                "done": min(done * options.part_size, opened.total),
                "temperature": model.temperature,
                "device": _device(resources),
            }
        )
        if done < parts:
            blocks = _labelled(model, opened, output.request, done, resources)
            classes = Classes(model.class_names, model.state.class_counts)
            total = opened.total
            try:
                with contextlib.closing(blocks):
                    _write(blocks, output, classes, done=done, total=total, follow=follow)
            except RayError as error:
                raise PredictionError(one_line(error)) from error
        return output.finish(parts)


def _manifest(images: str, options: Options) -> Manifest | None:
    """The manifest of shards; None where images are files."""
    if storage.exists(storage.join(images, MANIFEST)):
        return read_manifest(images)
    if options.split is not None:
        raise ValueError(f"--split is for shards, and {images} holds no {MANIFEST}")
    if next(storage.walk(images), None) is None:
        storage.check_usable(images, "list")
        raise ValueError(f"{images} holds no files: name a folder of images, or of shards")
    return None


def _request(model: OpenModel, images: str, manifest: Manifest | None, options: Options) -> Request:
    split = options.split or model.experiment.data.eval_split
    if manifest is not None:
        shards_of(images, manifest, split)
    return Request(
        model=model.uri,
        sha256=model.sha256,
        images=images,
        split=split if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        top=min(options.top, len(model.class_names)),
        embeddings=options.embeddings,
        csv=options.csv,
        batch_size=options.batch_size,
        part_size=options.part_size,
    )


def _opened(output: Output, manifest: Manifest | None, follow: Follow) -> Images:
    """The images; those of a folder are listed, unless they were before."""
    images, per_list = output.request.images, output.request.part_size
    if manifest is not None:
        return shards_of(images, manifest, str(output.request.split))
    listed = output.images
    if listed is not None:
        return Folder(images, output.listing, per_list, listed)

    def progress(found: int) -> None:
        follow({"kind": "images", "doing": "listing", "done": found, "total": None})

    folder = list_folder(images, output.listing, per_list, progress)
    output.note_images(folder.total)
    return folder


def _check_places(model: OpenModel, images: str, target: str, resources: Resources) -> None:
    """Refuse what not every node can read, and what this process cannot write."""
    places = {"MODEL": model.uri, "INPUT": images, "OUTPUT": target}
    for what, uri in places.items():
        if len(resources.nodes) > 1 and "://" not in uri:
            raise ValueError(
                f"{what} ({uri}) is a path of this machine, and the cluster has "
                f"{len(resources.nodes)} nodes: use a URI, or file:// for a folder that every "
                "node mounts"
            )
    storage.check_usable(target, "list", "read", "write", "delete")
    access.check_everywhere({what: (uri, {"list", "read"}) for what, uri in places.items()})


def _device(resources: Resources) -> str:
    return f"{resources.gpus:g} GPUs" if resources.gpus else f"{resources.cpus:g} CPUs"


def _write(
    blocks: Iterator[Columns],
    output: Output,
    classes: Classes,
    *,
    done: int,
    total: int,
    follow: Follow,
) -> None:
    """Cut parts from what comes back, and write them."""
    size = output.request.part_size
    rows, unreadable, told = done * size, 0, 0.0
    part: list[Columns] = []
    for block in _awaited(blocks, follow):
        part.append(block)
        rows += len(block["fault"])
        unreadable += int((block["fault"] != "").sum())
        if rows == min((done + 1) * size, total):
            output.write(done, table_of(*_joined(part), classes))
            done, part = done + 1, []
        if time.monotonic() - told > TICK or rows == total:
            told = time.monotonic()
            follow(_progress(rows, total, unreadable))
    if rows != total:
        raise RuntimeError(
            f"{rows:,} images came back of {total:,}: this is a fault of the stream, not of the "
            "images"
        )


def _awaited(blocks: Iterator[Columns], follow: Follow) -> Iterator[Columns]:
    """The same blocks; a person is told when the first of them is late."""
    text = f"no image came back within {LATE:g} s: others may use the cluster's CPUs or GPUs"
    note = threading.Timer(LATE, follow, [{"kind": "note", "text": text}])
    note.daemon = True
    note.start()
    try:
        for block in blocks:
            note.cancel()
            yield block
    finally:
        note.cancel()


def _progress(done: int, total: int, unreadable: int) -> dict[str, Any]:
    doing = {"kind": "images", "doing": "labelling", "done": done, "total": total}
    return {**doing, "unreadable": unreadable}


def _joined(blocks: list[Columns]) -> tuple[Columns, list[str]]:
    """A part's columns, and which of them are keys."""
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return columns, [name for name in ("path", "id", "true_class") if name in columns]


def _labelled(
    model: OpenModel, images: Images, request: Request, done: int, resources: Resources
) -> Generator[Columns, None, None]:
    """One block per batch, in order, of all parts but the first `done`."""
    first = done * request.part_size
    batches = -(-(images.total - first) // request.batch_size)
    actors = max(1, int(resources.gpus or resources.cpus))
    read = functools.partial(read_batch, images, model.experiment.views, first, request.batch_size)
    dataset = (
        ray.data.range(batches, override_num_blocks=batches)
        .map_batches(read, batch_size=1, num_cpus=1 if resources.gpus else READ_CPUS)
        .map_batches(
            Labeller,
            fn_constructor_args=(model.uri, model.sha256),
            fn_constructor_kwargs={"top": request.top, "embeddings": request.embeddings},
            batch_size=None,
            compute=ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=READ_CPUS if resources.gpus else 1 - READ_CPUS,
            num_gpus=1 if resources.gpus else None,
        )
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.custom_execution_callback_classes.append(Unhurried)
    context.target_max_block_size = None  # a block that Ray splits would no longer be one batch
    context.execution_options.preserve_order = True
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")
