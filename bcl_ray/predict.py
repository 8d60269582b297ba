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
from dataclasses import replace
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
from bcl_ray.lease import held
from bcl_ray.models import OpenModel, open_model
from bcl_ray.outputs import Options, Output, Request, Summary
from bcl_ray.shards import MANIFEST, Manifest, read_manifest
from bcl_ray.tables import Classes, table_of

Follow = Callable[[dict[str, Any]], None]
Columns = dict[str, NDArray[Any]]

TICK = 0.5  # seconds between two events of progress
LATE = 120.0  # seconds; starting Ray's processes and the network takes some 20
# Of a CPU, where there are no GPUs; the network has the rest. Whole CPUs for actors would leave
# none to read with, and Ray Data would make one of two stages that ask for the same.
READ_CPUS = 0.25


class PredictionError(RuntimeError):
    """Labelling began and failed; what is written stays."""


def predict(
    name: str,
    images: str,
    target: str,
    options: Options,
    *,
    root: str = "runs",
    last: bool = False,
    split: str | None = None,
    resume: bool = False,
    follow: Follow,
) -> Summary:
    """Label all images of a folder, prefix or data set, and write tables of it.

    Args:
        name: of the model, as `open_model` takes it, and so `root` and `last`.
        images: folder or URI of images, at any depth, or of shards.
        target: folder or URI for the result: see `outputs`.
        options: what tables are to hold.
        split: of shards; None: the one that the model's run evaluates on.
        resume: go on with what `target` holds, if anything.
        follow: called with events: `predicting`, `images`, `note`.

    Raises:
        ValueError: something that cannot work, or other predictions in `target`; before anything
            is written.
        HeldError: another process writes there.
        LostError: another process has taken over, while this one was frozen or cut off.
        PredictionError: it began and failed.
    """

    def note(text: str) -> None:
        follow({"kind": "note", "text": text})

    options.check()
    images, target = runs.absolute(images), runs.absolute(target)
    if f"{target.rstrip('/')}/".startswith(f"{images.rstrip('/')}/"):
        raise ValueError(f"OUTPUT ({target}) lies in INPUT, and would be labelled: name another")
    model = open_model(name, root, last=last)
    manifest = _manifest(images, split)
    output = Output(target, _request(model, images, manifest, split, options))
    output.check(resume=resume)
    with connected() as resources:
        _check_places(output.request, target, resources)
        with held(target, runs.shown(target), note, wait=resume, remove=True) as lease:
            output.begin(lease.fence)
            opened = _opened(output, manifest, follow)
            done, parts = output.parts(), -(-opened.total // options.part_size)
            follow(_begin_event(model, output, opened, done, resources))
            if done < parts:
                _label(model, opened, output, done, resources=resources, follow=follow)
            return output.finish(parts)


def _manifest(images: str, split: str | None) -> Manifest | None:
    """The manifest of shards; None where images are files."""
    if storage.exists(storage.join(images, MANIFEST)):
        return read_manifest(images)
    if split is not None:
        raise ValueError(f"--split is for shards, and {images} holds no {MANIFEST}")
    if next(storage.walk(images), None) is None:
        storage.check_usable(images, "list")
        raise ValueError(f"{images} holds no files: name a folder of images, or of shards")
    return None


def _request(
    model: OpenModel, images: str, manifest: Manifest | None, split: str | None, options: Options
) -> Request:
    split = split or model.experiment.data.eval_split
    if manifest is not None:
        shards_of(images, manifest, split)  # refuses a split that is not there
    return Request(
        model=model.uri,
        sha256=model.sha256,
        images=images,
        split=split if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        options=replace(options, top=min(options.top, len(model.class_names))),
    )


def _opened(output: Output, manifest: Manifest | None, follow: Follow) -> Images:
    """The images; those of a folder are listed, unless they were before."""
    images, per_list = output.request.images, output.request.options.part_size
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


def _check_places(request: Request, target: str, resources: Resources) -> None:
    """Refuse what not every node can read, and what this process cannot write."""
    places = {"MODEL": request.model, "INPUT": request.images, "OUTPUT": target}
    for what, uri in places.items():
        if len(resources.nodes) > 1 and "://" not in uri:
            raise ValueError(
                f"{what} ({uri}) is a path of this machine, and the cluster has "
                f"{len(resources.nodes)} nodes: use a URI, or file:// for a folder that every "
                "node mounts"
            )
    storage.check_usable(target, "list", "read", "write", "delete")
    access.check_everywhere({what: (uri, {"list", "read"}) for what, uri in places.items()})


def _begin_event(
    model: OpenModel, output: Output, images: Images, done: int, resources: Resources
) -> dict[str, Any]:
    gpus, cpus = resources.gpus, resources.cpus
    return {
        "kind": "predicting",
        "model": model.name,
        "checkpoint": runs.shown(model.uri),
        "images": runs.shown(output.request.images),
        "output": runs.shown(output.uri),
        "total": images.total,
        "done": min(done * output.request.options.part_size, images.total),
        "temperature": model.temperature,
        "device": f"{gpus:g} GPUs" if gpus else f"{cpus:g} CPUs",
    }


def _label(
    model: OpenModel,
    images: Images,
    output: Output,
    done: int,
    *,
    resources: Resources,
    follow: Follow,
) -> None:
    """Label all parts but the first `done`."""
    blocks = _labelled(model, images, output.request, done, resources)
    classes = Classes(model.class_names, model.state.class_counts)
    try:
        with contextlib.closing(blocks):
            awaited = _awaited(blocks, follow)
            _write(awaited, output, classes, done, total=images.total, follow=follow)
    except RayError as error:
        raise PredictionError(one_line(error)) from error


def _write(
    blocks: Iterator[Columns],
    output: Output,
    classes: Classes,
    done: int,
    *,
    total: int,
    follow: Follow,
) -> None:
    """Cut parts from what comes back, and write them."""
    size = output.request.options.part_size
    rows, unreadable, told = done * size, 0, 0.0
    part: list[Columns] = []
    for block in blocks:
        part.append(block)
        rows += len(block["fault"])
        unreadable += int((block["fault"] != "").sum())
        if rows == min((done + 1) * size, total):
            output.write(done, table_of(_joined(part), classes))
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


def _joined(blocks: list[Columns]) -> Columns:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _labelled(
    model: OpenModel, images: Images, request: Request, done: int, resources: Resources
) -> Generator[Columns, None, None]:
    """One block per batch, in order, of all parts but the first `done`."""
    options = request.options
    first, size = done * options.part_size, options.batch_size
    batches = -(-(images.total - first) // size)
    actors = max(1, int(resources.gpus or resources.cpus))
    read = functools.partial(read_batch, images, model.experiment.views, first, size)
    dataset = (
        ray.data.range(batches, override_num_blocks=batches)
        .map_batches(read, batch_size=1, num_cpus=1 if resources.gpus else READ_CPUS)
        .map_batches(
            Labeller,
            fn_constructor_args=(model.uri, model.sha256),
            fn_constructor_kwargs={"top": options.top, "embeddings": options.embeddings},
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
