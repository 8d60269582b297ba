"""Batches on their way to the device, copied by the thread that runs ahead of training.

A batch goes in one piece: all of its arrays lie in one page-locked buffer, which is filled again
once its copy has ended, and one copy on a stream of its own brings them to the device while the
step before still computes. The training thread copies nothing and never waits: its stream waits
for the copy, on the device.

Axes: N images, V contrastive views (of evaluation 0), H = W = views.image_size.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views import resident
from bcl_ray.data.views.device import choices
from bcl_ray.data.views.schedule import Pass
from bcl_ray.experiment.options import ViewsConfig

Batch = Mapping[str, NDArray[Any]]
Pieces = Mapping[str, Sequence[NDArray[Any]]]  # each array in pieces, to be laid end to end
Made = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # of what has arrived, on its stream

_ALIGNED = 256  # bytes; where arrays begin, as in CUDA's own allocations
_BUFFERS = 2  # one is filled while the other is copied


class Sent(NamedTuple):
    """A batch on its way to the device."""

    tensors: Mapping[str, Tensor]
    """`views` uint8 (N, 1 + V, H, W, 3), `labels` and `ids` int64 (N,), and arrays of choices."""
    host: Batch
    """The same arrays but for the views, on the host."""
    passes: Sequence[Pass] = ()
    """What happens to the views there; nothing in evaluation."""
    copied: Any = None
    """The CUDA event after the copy and what was made of it, if there is one."""

    def arrived(self) -> Mapping[str, Tensor]:
        """The tensors for the current stream, which waits for them; the host does not."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(next(iter(self.tensors.values())).device)
            stream.wait_event(self.copied)
            # Their memory is the copy stream's, which would use it again while this stream still
            # reads it.
            for tensor in self.tensors.values():
                tensor.record_stream(stream)
        return self.tensors


class Sender:
    """Sends batches to a device; one thread calls it, another may use what was sent.

    Args:
        device: where to.
        config: options of the views.
        seed: of the run; with the epoch and the images' ids it keys every choice.
    """

    def __init__(self, device: torch.device, config: ViewsConfig, seed: int = 0) -> None:
        self.device, self._config, self._seed = device, config, seed
        self._carry = CARRIERS[device.type](device)

    def training(self, parts: Sequence[Batch], epoch: int) -> Sent:
        """Draw what happens to a batch's views on the device, and send both.

        Args:
            parts: pieces of the batch: `views`, `labels` and `ids` of some of its images each.
            epoch: its number.
        """
        host = _host(parts)
        num_views = parts[0]["views"].shape[1]
        drawn = choices(
            host["ids"], self._config, num_views=num_views, seed=self._seed, epoch=epoch
        )
        return self._sent(parts, {**host, **drawn.arrays})._replace(passes=drawn.passes)

    def evaluation(self, parts: Sequence[Batch]) -> Sent:
        """Send a batch that is evaluated; arguments as of `training`."""
        return self._sent(parts, _host(parts))

    def resident(
        self, images: Tensor, rows: NDArray[np.int64], host: Batch, *, num_views: int, epoch: int
    ) -> Sent:
        """Draw what happens to a batch's views, send it, and crop them there.

        Args:
            images: on the device, (R, H, W, 3) uint8.
            rows: which of them are the batch's, (N,).
            host: `labels` and `ids`, (N,).
            num_views: 1 + V.
            epoch: its number.
        """
        options = {"num_views": num_views, "seed": self._seed, "epoch": epoch}
        drawn = choices(host["ids"], self._config, **options)
        crops = resident.crops(host["ids"], self._config, **options)
        arrays = {**host, **drawn.arrays, "rows": rows, "crops": crops}

        def with_views(sent: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"views": resident.cropped(images, sent["rows"], sent["crops"]), **sent}

        pieces = {name: [array] for name, array in arrays.items()}
        tensors, copied = self._carry(pieces, with_views)
        return Sent(tensors, host, drawn.passes, copied)

    def arrays(self, arrays: Batch) -> Mapping[str, Tensor]:
        """Other arrays on the device, for the current stream."""
        tensors, copied = self._carry({name: [array] for name, array in arrays.items()})
        return Sent(tensors, {}, copied=copied).arrived()

    def _sent(self, parts: Sequence[Batch], host: Batch) -> Sent:
        pieces = {name: [array] for name, array in host.items()}
        tensors, copied = self._carry({"views": [part["views"] for part in parts], **pieces})
        return Sent(tensors, host, copied=copied)


def _host(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in ("labels", "ids")}


class Direct:
    """For a CPU: the arrays themselves."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, pieces: Pieces, made: Made = dict) -> tuple[dict[str, Tensor], None]:
        """Join the pieces; they may be Ray's, which are read-only."""
        joined = {name: np.concatenate(arrays) for name, arrays in pieces.items()}
        return made({name: torch.from_numpy(array) for name, array in joined.items()}), None


class Pinned:
    """For a GPU: page-locked buffers in turn, and a stream that copies them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = itertools.cycle([_Buffer() for _ in range(_BUFFERS)])

    def __call__(self, pieces: Pieces, made: Made = dict) -> tuple[dict[str, Tensor], Any]:
        """Fill a buffer with the pieces, and start its copy and what is made of it there."""
        places, size = layout(pieces)
        buffer = next(self._buffers)
        host = buffer.of(size)
        for name, arrays in pieces.items():
            begin, dtype, shape = places[name]
            end = begin + dtype.itemsize * int(np.prod(shape))
            np.concatenate(arrays, out=host[begin:end].view(dtype).reshape(shape))
        with torch.cuda.stream(self._stream):
            whole = torch.empty(size, dtype=torch.uint8, device=self._device)
            whole.copy_(buffer.tensor[:size], non_blocking=True)
            tensors = made(cut(whole, places))
            buffer.copied = torch.cuda.Event(blocking=True)
            buffer.copied.record(self._stream)
        return tensors, buffer.copied


Place = tuple[int, np.dtype[Any], tuple[int, ...]]  # first byte, dtype, shape


def layout(pieces: Pieces) -> tuple[dict[str, Place], int]:
    """Where each array begins in one buffer, and the buffer's bytes."""
    places, end = {}, 0
    for name, arrays in pieces.items():
        first = arrays[0]
        shape = (sum(len(array) for array in arrays), *first.shape[1:])
        places[name] = (end, first.dtype, shape)
        size = first.dtype.itemsize * int(np.prod(shape))
        end += -(-size // _ALIGNED) * _ALIGNED
    return places, end


def cut(whole: Tensor, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The arrays of a buffer, (bytes,) uint8, as views of its memory."""
    tensors = {}
    for name, (begin, dtype, shape) in places.items():
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        end = begin + dtype.itemsize * int(np.prod(shape))
        tensors[name] = whole[begin:end].view(kind).view(shape)
    return tensors


class _Buffer:
    """Page-locked memory, and the end of the last copy from it."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0, dtype=torch.uint8)
        self.copied: Any = None

    def of(self, size: int) -> NDArray[np.uint8]:
        """At least so many bytes, whose last copy has ended: this thread waits for it."""
        if self.copied is not None:
            self.copied.synchronize()
        if len(self.tensor) < size:
            self.tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self.tensor.numpy()


CARRIERS: dict[str, Callable[[torch.device], Callable[..., tuple[dict[str, Tensor], Any]]]]
CARRIERS = {"cpu": Direct, "cuda": Pinned}
