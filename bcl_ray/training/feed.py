"""Where a worker's batches come from: a stream of Ray Data, or images that its device holds."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator

import torch

from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import Sender, Sent
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import rank, sum_over_workers, world_size
from bcl_ray.runs.budget import resident_bytes
from bcl_ray.training.residency import Over, Resident, UnsupportedError
from bcl_ray.training.stream import evaluation_batches, training_batches

MEMORY_SHARE = 0.25  # of a GPU's, that 'auto' lets images have


class Streamed:
    """A worker's batches from Ray Data; the counterpart of `Resident`."""

    kind = "stream"

    def __init__(self, experiment: Experiment, manifest: Manifest, device: torch.device) -> None:
        self._experiment, self._manifest = experiment, manifest
        self._evaluation = Sender(device, experiment.views).evaluation

    def training(
        self, sender: Sender, first_step: int
    ) -> Generator[tuple[int, Iterator[Sent]], None, None]:
        """Each epoch that is left, with this worker's batches of it."""
        return training_batches(
            self._experiment,
            self._manifest,
            rank=rank(),
            world_size=world_size(),
            first_step=first_step,
            deliver=sender.training,
        )

    def evaluation(self) -> Iterable[Sent]:
        """This worker's part of the evaluation split."""
        return evaluation_batches(
            self._experiment,
            self._manifest,
            rank=rank(),
            world_size=world_size(),
            deliver=self._evaluation,
        )


Feed = Streamed | Resident


def open_feed(
    experiment: Experiment, manifest: Manifest, device: torch.device, over: Over = iter
) -> tuple[Feed, str]:
    """What data.residency asks for; all workers get the same kind, so call it on all of them.

    Args:
        experiment: what to train.
        manifest: of the shards in experiment.data.path.
        device: of this worker.
        over: wraps what takes long, such as `Watch.over`; gives the same items.

    Returns:
        the feed, and where 'auto' has not put images on a GPU, why.

    Raises:
        UnsupportedError: data.residency is 'device', and the images cannot live there; on all
            workers at once.
        OSError: a shard cannot be read.
    """
    return _WAYS[experiment.data.residency](experiment, manifest, device, over)


def _streamed(
    experiment: Experiment, manifest: Manifest, device: torch.device, _: Over
) -> tuple[Feed, str]:
    return Streamed(experiment, manifest, device), ""


def _resident(
    experiment: Experiment, manifest: Manifest, device: torch.device, over: Over
) -> tuple[Feed, str]:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    feed, why = _on_all_workers(experiment, manifest, device, over, room=free)
    if feed is None:
        raise UnsupportedError(f"data.residency is 'device': {why}")
    return feed, ""


def _automatic(
    experiment: Experiment, manifest: Manifest, device: torch.device, over: Over
) -> tuple[Feed, str]:
    if device.type != "cuda":
        return _streamed(experiment, manifest, device, over)
    room = MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    feed, why = _on_all_workers(experiment, manifest, device, over, room=room)
    return feed or Streamed(experiment, manifest, device), why


def _on_all_workers(
    experiment: Experiment, manifest: Manifest, device: torch.device, over: Over, *, room: float
) -> tuple[Resident | None, str]:
    """Images on every worker's device, of which they may have `room` bytes; or why there are none.

    One worker that streams would need CPUs for data, and one that fails would leave the others
    waiting for it.
    """
    needed, gib = resident_bytes(experiment, manifest, world_size()), 2**30
    why, feed = f"images need {needed / gib:.1f} GiB, a device has {room / gib:.1f} for them", None
    if needed <= room:
        own = {"rank": rank(), "world_size": world_size()}
        try:
            feed, why = Resident(experiment, manifest, device, over=over, **own), ""
        except UnsupportedError as error:
            why = str(error)
    missing = torch.tensor([float(feed is None)], device=device)
    if sum_over_workers(missing).any():
        return None, why or "another worker's device cannot have them"
    return feed, ""


_WAYS: dict[str, Callable[[Experiment, Manifest, torch.device, Over], tuple[Feed, str]]]
_WAYS = {"stream": _streamed, "device": _resident, "auto": _automatic}
