"""Label images with a trained model: Ray Data reads them on CPUs, actors run the network.

A batch of images is read and decoded by a task, goes through the network at once, and comes
back to the driver in order, which cuts parts from it and writes them. So the same images give
the same tables, whatever the cluster; with another kind of processor, or another batch size,
they differ by rounding. What is held is a part's rows in the driver, and what Ray Data has in
flight.
"""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, ExecutionResources
from ray.exceptions import RayError

from bcl_ray.data.shards import MANIFEST, Manifest, read_manifest
from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.ray_runtime import access, node_groups
from bcl_ray.ray_runtime.autoscaler import Demand, wait_for_nodes
from bcl_ray.ray_runtime.connection import Resources, connected, local_path_message, one_line
from bcl_ray.ray_runtime.elastic import usable_nodes
from bcl_ray.storage import files, paths
from bcl_ray.storage.lease_request import LeaseRequest
from bcl_ray.training.stream import PausingCallback
from bcl_ray.use.models import OpenModel, open_model
from bcl_ray.use.predict.inputs import Folder, InputImages, list_folder, read_batch, shards_of
from bcl_ray.use.predict.labeller import Labeller
from bcl_ray.use.predict.outputs import Options, Output, PredictionRequest, Summary
from bcl_ray.use.predict.tables import Classes, table_of

Follow = Callable[[dict[str, Any]], None]
Columns = dict[str, NDArray[Any]]

TICK = 0.5  # seconds between two events of progress
LATE = 120.0  # seconds; starting Ray's processes and the network takes some 20
# Of a CPU, where there are no GPUs; the network has the rest. Whole CPUs for actors would leave
# none to read with, and Ray Data would make one of two stages that ask for the same.
READ_CPUS = 0.25


@dataclass(frozen=True)
class Pool:
    """Actors that run the network, and what each of them and of its readers holds.

    Args:
        actors: at most.
        actor: resources of one.
        reader: resources of a task that reads for them.
    """

    actors: int
    actor: dict[str, float]
    reader: dict[str, float]

    @property
    def device(self) -> str:
        """What the network runs on, in words."""
        return f"{self.actors} {'GPUs' if 'GPU' in self.actor else 'CPUs'}"

    def lacking(self) -> str:
        """What the cluster lacks for one actor and one reader; nothing where it has enough."""
        nodes = usable_nodes().values()
        wanted = {**self.actor, "CPU": self.actor["CPU"] + self.reader["CPU"]}
        have = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted}
        short = [
            f"{wanted[n]:g} {n}, and there are {have[n]:g}" for n in wanted if have[n] < wanted[n]
        ]
        return "; ".join(short)


def pool(resources: Resources, batches: int, gpus: int | None, cpus: int | None) -> Pool:
    """As many actors as there is room for: on GPUs where there are any, else on CPUs.

    Args:
        resources: of the cluster; of one that grows, the most that it can have.
        batches: that there are to label.
        gpus: to use at most, 0: none; None: all.
        cpus: likewise, where no GPU is used.

    Raises:
        ValueError: an option is out of range, or has to say how far a cluster is to grow.
    """
    for option, given in (("--gpus", gpus), ("--cpus", cpus)):
        if given is not None and given < (option == "--cpus"):
            raise UserError(f"{option} ({given}) must be at least {int(option == '--cpus')}")
    if (gpus or 0) > resources.gpus:
        raise UserError(f"--gpus ({gpus}) is more than the cluster can have ({resources.gpus:g})")
    on_gpus = min(resources.gpus, math.inf if gpus is None else gpus)
    on_cpus = min(resources.cpus, math.inf if cpus is None else cpus)
    unknown = "--gpus" if math.isinf(on_gpus) else "--cpus"
    if math.isinf(on_gpus or on_cpus):
        raise UserError(
            f"the cluster grows, and nobody has said how far: give {unknown}, or set "
            f"{node_groups.VARIABLE} on its head"
        )
    if int(on_gpus):
        actors = min(int(on_gpus), batches)
        return Pool(actors, {"CPU": READ_CPUS, "GPU": 1.0}, {"CPU": 1.0})
    actors = max(1, min(int(on_cpus), batches))
    return Pool(actors, {"CPU": 1 - READ_CPUS}, {"CPU": READ_CPUS})


class PredictionError(FailedError):
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
    gpus: int | None = None,
    cpus: int | None = None,
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
        gpus: to use at most, 0: none; None: all that the cluster has, or can grow to.
        cpus: likewise, where no GPU is used.
        follow: called with events: `predicting`, `images`, `note`.

    Raises:
        ValueError: something that cannot work, or other predictions in `target`; before anything
            is written.
        LeaseHeldError: another process writes there.
        LeaseLostError: another process has taken over, while this one was frozen or cut off.
        PredictionError: it began and failed, or the nodes that it needs did not come.
    """
    options.check()
    images, target = paths.absolute(images), paths.absolute(target)
    if f"{target.rstrip('/')}/".startswith(f"{images.rstrip('/')}/"):
        raise UserError(f"OUTPUT ({target}) lies in INPUT, and would be labelled: name another")
    model = open_model(name, root, last=last)
    manifest = _manifest(images, split)
    output = Output(target, _request(model, images, manifest, split, options))
    output.check(resume=resume)
    note = functools.partial(_note, follow)
    lease_request = LeaseRequest(target, paths.for_display(target), note)
    lease_request.check_free(wait=resume)
    with connected() as resources:
        _check_places(output.request, target, resources)
        with lease_request.acquire(wait=resume, remove=True) as lease:
            output.begin(lease.fence)
            opened = _opened(output, manifest, follow)
            done, parts = output.parts(), -(-opened.total // options.part_size)
            left = opened.total - done * options.part_size
            actors = pool(resources, -(-left // options.batch_size), gpus, cpus)
            follow(_begin_event(model, output, opened, done, actors))
            if done < parts:
                with Demand(f"predict-{output.uri}") as demand:
                    if resources.grows:
                        _await_nodes(actors, model, demand, follow)
                    blocks = _labelled(model, opened, output.request, done, actors)
                    # What is asked for is reserved; with the first block it becomes Ray Data's.
                    awaited = _awaited(blocks, follow, functools.partial(demand.request, []))
                    _label(model, opened, output, done, blocks=awaited, follow=follow)
            return output.finish(parts)


def _await_nodes(actors: Pool, model: OpenModel, demand: Demand, follow: Follow) -> None:
    """Ask for the nodes of all actors and a reader each, and wait for the first of both."""
    demand.request([actors.actor] * actors.actors + [actors.reader] * actors.actors)
    patience = model.experiment.scale.wait_timeout
    if not wait_for_nodes(actors.lacking, patience, functools.partial(_note, follow)):
        raise PredictionError(
            f"the nodes did not come within the model's scale.wait_timeout ({patience:g} s): it "
            f"needs {actors.lacking()}; see `ray status` on the head"
        )


def _note(follow: Follow, text: str) -> None:
    follow({"kind": "note", "text": text})


def _manifest(images: str, split: str | None) -> Manifest | None:
    """The manifest of shards; None where images are files."""
    if files.exists(files.join(images, MANIFEST)):
        return read_manifest(images)
    if split is not None:
        raise UserError(f"--split is for shards, and {images} holds no {MANIFEST}")
    if next(files.walk(images), None) is None:
        files.check_usable(images, "list")
        if paths.is_local(images) and not files.exists(images):
            raise UserError(
                f"INPUT {paths.for_display(images)} does not exist: name a folder of images"
            )
        raise UserError(f"{images} holds no files: name a folder of images, or of shards")
    return None


def _request(
    model: OpenModel, images: str, manifest: Manifest | None, split: str | None, options: Options
) -> PredictionRequest:
    split = split or model.experiment.data.eval_split
    if manifest is not None:
        shards_of(images, manifest, split)  # refuses a split that is not there
    return PredictionRequest(
        model=model.uri,
        sha256=model.sha256,
        images=images,
        split=split if manifest else None,
        fingerprint=manifest.fingerprint if manifest else None,
        options=replace(options, top=min(options.top, len(model.class_names))),
    )


def _opened(output: Output, manifest: Manifest | None, follow: Follow) -> InputImages:
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


def _check_places(request: PredictionRequest, target: str, resources: Resources) -> None:
    """Refuse what not every node can read, and what this process cannot write."""
    places = {"MODEL": request.model, "INPUT": request.images, "OUTPUT": target}
    for what, uri in places.items():
        if resources.several_nodes and "://" not in uri:
            raise UserError(local_path_message(f"{what} ({uri})", resources))
    files.check_usable(target, "list", "read", "write", "delete")
    access.check_everywhere({what: (uri, {"list", "read"}) for what, uri in places.items()})


def _begin_event(
    model: OpenModel, output: Output, images: InputImages, done: int, actors: Pool
) -> dict[str, Any]:
    return {
        "kind": "predicting",
        "model": model.name,
        "checkpoint": paths.for_display(model.uri),
        "images": paths.for_display(output.request.images),
        "output": paths.for_display(output.uri),
        "total": images.total,
        "done": min(done * output.request.options.part_size, images.total),
        "temperature": model.temperature,
        "device": actors.device,
    }


def _label(
    model: OpenModel,
    images: InputImages,
    output: Output,
    done: int,
    *,
    blocks: Generator[Columns, None, None],
    follow: Follow,
) -> None:
    """Write all parts but the first `done`."""
    classes = Classes(model.class_names, model.state.class_counts)
    try:
        with contextlib.closing(blocks):
            _write(blocks, output, classes, done, total=images.total, follow=follow)
    except RayError as error:
        raise PredictionError(
            f"{one_line(error)}\nwhat is done stays: go on with --resume"
        ) from error


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


def _awaited(
    blocks: Generator[Columns, None, None], follow: Follow, arrived: Callable[[], None]
) -> Generator[Columns, None, None]:
    """The same blocks; `arrived` is called with the first, and a person is told when it is late."""
    text = f"no image came back within {LATE:g} s: others may use the cluster's CPUs or GPUs"
    late = threading.Timer(LATE, _note, [follow, text])
    late.daemon = True
    late.start()
    try:
        with contextlib.closing(blocks):
            for number, block in enumerate(blocks):
                late.cancel()
                if not number:
                    arrived()
                yield block
    finally:
        late.cancel()


def _progress(done: int, total: int, unreadable: int) -> dict[str, Any]:
    doing = {"kind": "images", "doing": "labelling", "done": done, "total": total}
    return {**doing, "unreadable": unreadable}


def _joined(blocks: list[Columns]) -> Columns:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _labelled(
    model: OpenModel, images: InputImages, request: PredictionRequest, done: int, actors: Pool
) -> Generator[Columns, None, None]:
    """One block per batch, in order, of all parts but the first `done`."""
    options = request.options
    first, size = done * options.part_size, options.batch_size
    batches = -(-(images.total - first) // size)
    read = functools.partial(read_batch, images, model.experiment.views, first, size)
    dataset = (
        ray.data.range(batches, override_num_blocks=batches)
        .map_batches(read, batch_size=1, num_cpus=actors.reader["CPU"])
        .map_batches(
            Labeller,
            fn_constructor_args=(model.uri, model.sha256),
            fn_constructor_kwargs={"top": options.top, "embeddings": options.embeddings},
            batch_size=size,  # of one block each; Ray wants to be told where there are GPUs
            compute=ActorPoolStrategy(min_size=1, max_size=actors.actors),
            num_cpus=actors.actor["CPU"],
            num_gpus=actors.actor.get("GPU"),
        )
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.custom_execution_callback_classes.append(PausingCallback)
    context.target_max_block_size = None  # a block that Ray splits would no longer be one batch
    context.execution_options.preserve_order = True
    # While it is busy, Ray Data itself asks for one node more of each kind that there is.
    used = {"gpu": actors.actors} if "GPU" in actors.actor else {"cpu": actors.actors}
    context.execution_options.resource_limits = ExecutionResources.for_limits(**used)
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")
