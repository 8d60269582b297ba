"""Label images with a trained model: checks, the input, and the output folder."""

import contextlib
import math
from collections.abc import Callable

from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime import access
from bcl_ray.ray_runtime.autoscaler import Demand
from bcl_ray.ray_runtime.connection import Resources, connected, local_path_message
from bcl_ray.runs.events import Follow
from bcl_ray.storage import files, paths
from bcl_ray.storage.lease_request import LeaseRequest
from bcl_ray.use.models import OpenModel
from bcl_ray.use.predict.inputs import Folder
from bcl_ray.use.predict.listing import Listed, Listing
from bcl_ray.use.predict.outputs import Output, Summary
from bcl_ray.use.predict.pipeline import Pipeline
from bcl_ray.use.predict.pool import plan_pool, request_nodes
from bcl_ray.use.predict.request import (
    PredictionOptions,
    PredictionRequest,
    make_request,
    open_shards,
)

# Batches that are listed before the first is labelled. If there are more, there is work for as many
# actors, and the listing goes on meanwhile.
FIRST_BATCHES = 1000


def predict(
    model: OpenModel,
    images: str,
    target: str,
    options: PredictionOptions,
    *,
    split: str | None = None,
    resume: bool = False,
    gpus: int | None = None,
    cpus: int | None = None,
    follow: Follow,
) -> Summary:
    """Label all images of a folder, prefix or data set, and write tables of the result.

    Args:
        model: The model.
        images: Folder or URI of images, at any depth, or of shards.
        target: Folder or URI for the result, see `outputs`.
        options: Options of the tables.
        split: Split of shards; None: the one that the model's run evaluated on.
        resume: Resume the prediction that `target` holds, if any.
        gpus: GPUs to use at most, 0 for none; None: all that the cluster has or can grow to.
        cpus: CPUs to use at most, if no GPU is used; None: likewise.
        follow: Called with events: `predicting`, `images`, `note`.

    Raises:
        ValueError: The prediction cannot work, or `target` holds another one. Nothing was written.
        LeaseHeldError: Another process writes to `target`.
        LeaseLostError: This process did not respond for a while, and another one has taken over.
        PredictionError: The prediction failed after it had begun, or its nodes did not come.
    """
    options.check()
    images, target = paths.absolute(images), paths.absolute(target)
    if f"{target.rstrip('/')}/".startswith(f"{images.rstrip('/')}/"):
        raise UserError(f"OUTPUT ({target}) lies in INPUT, and would be labelled: name another")
    shards = open_shards(images, split, model.experiment.data.eval_split)
    output = Output(target, make_request(model, images, shards, options))
    output.check(resume=resume)

    def notify(text: str) -> None:
        follow({"kind": "note", "text": text})

    def show_listed(number: int) -> None:
        follow({"kind": "images", "doing": "listing", "done": number, "total": None})

    lease_request = LeaseRequest(target, paths.for_display(target), notify)
    lease_request.check_free(wait=resume)
    with connected() as resources:
        _check_locations(output.request, target, resources)
        with lease_request.acquire(wait=resume, remove=True) as lease:
            output.begin(lease.fence)
            finished_parts = output.finished_parts()
            done = finished_parts * options.part_size
            inputs = shards or Folder(images, output.lists)
            counts = iter([shards.layout.rows]) if shards else output.list_images()
            with contextlib.closing(Listing(counts)) as listing:
                listed = listing.wait(done + FIRST_BATCHES * options.batch_size, show_listed)
                batches = math.ceil((listed.images - done) / options.batch_size)
                if batches > 0:  # below 0 if the last part is short and finished
                    pool = plan_pool(resources, batches, gpus, cpus)
                    pipeline = Pipeline(
                        model, inputs, listing, output, pool, finished_parts, follow
                    )
                    _announce(pipeline, listed)
                    _run(pipeline, resources, notify)
                total = listing.now().images
            return output.finish(math.ceil(total / options.part_size))


def _check_locations(request: PredictionRequest, target: str, resources: Resources) -> None:
    """Refuse inputs that some node cannot read, and an output that this process cannot write."""
    locations = {"MODEL": request.model, "INPUT": request.images, "OUTPUT": target}
    for name, uri in locations.items():
        if resources.several_nodes and "://" not in uri:
            raise UserError(local_path_message(f"{name} ({uri})", resources))
    files.check_usable(target, "list", "read", "write", "delete")
    access.check_everywhere({name: (uri, {"list", "read"}) for name, uri in locations.items()})


def _announce(pipeline: Pipeline, listed: Listed) -> None:
    """Report what begins now."""
    output = pipeline.output
    done = pipeline.finished_parts * output.request.options.part_size
    event = {
        "kind": "predicting",
        "model": pipeline.model.name,
        "checkpoint": paths.for_display(pipeline.model.uri),
        "images": paths.for_display(output.request.images),
        "output": paths.for_display(output.uri),
        "total": listed.images,
        "done": min(done, listed.images),
        "temperature": pipeline.model.temperature,
        "device": pipeline.pool.device,
    }
    pipeline.follow(event)
    if not listed.complete:
        text = f"listing goes on after {listed.images:,} images, while these are labelled"
        pipeline.follow({"kind": "note", "text": text})


def _run(pipeline: Pipeline, resources: Resources, notify: Callable[[str], None]) -> None:
    with Demand(f"predict-{pipeline.output.uri}") as demand:
        if resources.grows:
            timeout = pipeline.model.experiment.scale.wait_timeout
            request_nodes(pipeline.pool, demand, timeout, notify)
        # The request keeps the nodes until the actors hold them, which the first labelled batch
        # shows.
        pipeline.run(on_first_block=lambda: demand.request([]))
