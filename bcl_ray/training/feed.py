"""A worker's source of batches: a stream of Ray Data, or images that its device holds."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator

import ray
import torch
from ray.train.collective import broadcast_from_rank_zero

from bcl_ray.data.layout import split_layout
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import DeviceBatch, Sender
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import gather_rows, rank, sum_over_workers, world_size
from bcl_ray.runs.budget import RESIDENT_SHARE, kept_limit, resident_bytes
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.residency import ResidentFeed
from bcl_ray.training.resident_images import UnsupportedError, Watch
from bcl_ray.training.stream import SupplierClient, evaluation_batches, training_batches
from bcl_ray.training.supplier_placement import start_suppliers

GIB = 2**30


class KeptBatches:
    """A worker's batches of a split: read at the first iteration, and kept for all later ones.

    Args:
        batches: Batches, which are read once.
    """

    def __init__(self, batches: Iterable[DeviceBatch]) -> None:
        self._batches = iter(batches)
        self._kept: list[DeviceBatch] = []

    def __iter__(self) -> Iterator[DeviceBatch]:
        """All batches, in the same order each time."""
        yield from self._kept
        for batch in self._batches:
            self._kept.append(batch)
            yield batch


class StreamFeed:
    """A worker's batches from Ray Data; has the methods of `ResidentFeed`.

    Args:
        experiment: The run's options.
        manifest: Manifest of the shards in data.path.
        device: The worker's device.
    """

    kind = "stream"

    def __init__(self, experiment: Experiment, manifest: Manifest, device: torch.device) -> None:
        self._experiment, self._manifest, self._device = experiment, manifest, device
        self._send_evaluation = Sender(device, experiment.views).send_evaluation
        self._client: SupplierClient
        self._keeps = False  # whether images of the first evaluation are kept for the others
        self._kept: KeptBatches | None = None

    def training(
        self, sender: Sender, first_step: int, *, evaluate_first: bool
    ) -> Generator[tuple[int, Iterator[DeviceBatch]], None, None]:
        """Start to make batches; all workers call it, once, and together.

        Args:
            sender: Sender to the worker's device.
            first_step: Number of steps of the whole run that are done.
            evaluate_first: Whether `evaluation` is needed before the first of these steps.

        Returns:
            Each remaining epoch's number, with this worker's batches of it.
        """
        self._keeps = _may_keep(self._experiment, self._manifest, self._device)
        whole = Assignment(
            self._experiment,
            self._manifest,
            range(world_size()),
            world_size(),
            first_step=first_step,
            evaluate_first=evaluate_first,
            evaluates_once=self._keeps,
        )
        node_of_rank = _gather_nodes(self._device)
        suppliers = start_suppliers(whole, node_of_rank) if rank() == 0 else None
        self._client = SupplierClient(broadcast_from_rank_zero(suppliers)[rank()], rank())
        return training_batches(
            self._experiment,
            self._manifest,
            self._client,
            world_size=world_size(),
            first_step=first_step,
            deliver=sender.send_training,
        )

    def evaluation(self) -> Iterable[DeviceBatch]:
        """Batches of this worker's part of the evaluation split, for the next evaluation."""
        if self._kept is not None:
            return self._kept
        batches = evaluation_batches(
            self._experiment,
            self._manifest,
            self._client,
            world_size=world_size(),
            deliver=self._send_evaluation,
        )
        if self._keeps:
            self._kept = KeptBatches(batches)
        return self._kept or batches


def _may_keep(experiment: Experiment, manifest: Manifest, device: torch.device) -> bool:
    """Whether every worker has room to keep its part of the evaluation split.

    All workers call it, and get the same answer.
    """
    rows = split_layout(experiment, manifest, "evaluation").rows
    size = 3 * experiment.views.image_size**2 * rows / world_size()
    return not _any_worker(size > kept_limit(_gpu_memory(device)), device)


def _any_worker(flag: bool, device: torch.device) -> bool:
    """Whether any worker gives the flag; all workers call it, and get the same answer."""
    return bool(sum_over_workers(torch.tensor([float(flag)], device=device)).any())


def _gather_nodes(device: torch.device) -> list[str]:
    """Ids of the nodes of all workers, in the order of ranks."""
    name = ray.get_runtime_context().get_node_id()
    row = torch.tensor([list(name.encode())], dtype=torch.uint8, device=device)
    return [bytes(codes).decode() for codes in gather_rows(row).tolist()]


Feed = StreamFeed | ResidentFeed


def open_feed(
    experiment: Experiment, manifest: Manifest, device: torch.device, watched: Watch = iter
) -> tuple[Feed, str]:
    """Open the feed that data.residency names; all workers call it and get the same kind.

    Args:
        experiment: The run's options.
        manifest: Manifest of the shards in data.path.
        device: This worker's device.
        watched: Wraps an iterable that takes long, as `Watchdog.watched` does.

    Returns:
        The feed; and the reason why 'auto' does not keep images on a GPU, or an empty text.

    Raises:
        UnsupportedError: data.residency is 'device', and a device cannot hold the images; raised
            on all workers.
        OSError: A shard cannot be read.
    """
    limit = _LIMITS[experiment.data.residency](device)
    if limit is None:
        return StreamFeed(experiment, manifest, device), ""
    feed, reason = _on_all_devices(experiment, manifest, device, watched, limit=limit)
    if feed is None and experiment.is_resident:
        raise UnsupportedError(f"data.residency is 'device': {reason}")
    return feed or StreamFeed(experiment, manifest, device), reason


def _gpu_memory(device: torch.device) -> float:
    """Bytes of a GPU; 0 for a CPU."""
    if device.type != "cuda":
        return 0.0
    return float(torch.cuda.get_device_properties(device).total_memory)


def _free_memory(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def _gpu_share(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return RESIDENT_SHARE * _gpu_memory(device)


# Bytes of a device that images may take, by data.residency; None: they are streamed.
_LIMITS: dict[str, Callable[[torch.device], float | None]] = {
    "stream": lambda _: None,
    "device": _free_memory,
    "auto": _gpu_share,
}


def _on_all_devices(
    experiment: Experiment,
    manifest: Manifest,
    device: torch.device,
    watched: Watch,
    *,
    limit: float,
) -> tuple[ResidentFeed | None, str]:
    """A feed from images on every worker's device, or None and the reason.

    Workers have to agree. If only one streamed, it would need CPUs for data tasks; if only one
    failed, the others would wait for it. Images may take `limit` bytes of each device.
    """
    size, feed = resident_bytes(experiment, manifest, world_size()), None
    reason = f"images need {size / GIB:.1f} GiB, and a device has {limit / GIB:.1f} GiB for them"
    if size <= limit:
        try:
            feed = ResidentFeed(
                experiment,
                manifest,
                device,
                rank=rank(),
                world_size=world_size(),
                watched=watched,
            )
        except UnsupportedError as error:
            reason = str(error)
    if not _any_worker(feed is None, device):
        return feed, ""
    return None, "another worker's device cannot hold them" if feed else reason
