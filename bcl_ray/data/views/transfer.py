"""Sending batches to the device, in the thread that prefetches them.

A batch is copied to a GPU in one piece. All of its arrays are put in one page-locked buffer, and
one copy on a stream of its own brings them to the device, while the previous training step still
computes. The buffer is reused when its copy has ended. The training thread neither copies nor
waits: its stream waits for the copy, on the device.

Axes: N images, V contrastive views (0 in evaluation), H = W = views.image_size.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bcl_ray.data.views import resident
from bcl_ray.data.views.device import draw_augmentations
from bcl_ray.data.views.schedule import Pass
from bcl_ray.experiment.options import ViewsConfig

Batch = Mapping[str, NDArray[Any]]
Pieces = Mapping[str, Sequence[NDArray[Any]]]  # arrays in pieces, which are to be concatenated
Finish = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # computes on the tensors after the copy

_ALIGNMENT = 256  # bytes; arrays in a buffer are aligned as in CUDA's own allocations
_BUFFERS = 2  # one is filled while the other one is copied


class DeviceBatch(NamedTuple):
    """A batch on the device, or being copied to it."""

    tensors: Mapping[str, Tensor]
    """`views` uint8 (N, 1 + V, H, W, 3), `labels` and `ids` int64 (N,); and in training the arrays
    of `device.Augmentations`."""
    host: Batch
    """`labels` and `ids` on the host."""
    passes: Sequence[Pass] = ()
    """The passes of `device.Augmentations`; empty in evaluation."""
    copy_event: Any = None
    """The CUDA event after the copy and the computation that follows it; None on a CPU."""

    def arrived(self) -> Mapping[str, Tensor]:
        """The tensors for the current stream, which waits for the copy; the host does not wait."""
        if self.copy_event is not None:
            stream = torch.cuda.current_stream(next(iter(self.tensors.values())).device)
            stream.wait_event(self.copy_event)
            # The tensors belong to the copy's stream, which would otherwise reuse their memory
            # while this stream still reads it.
            for tensor in self.tensors.values():
                tensor.record_stream(stream)
        return self.tensors


class Sender:
    """Sends batches to a device. One thread calls it; another one may use the batches.

    Args:
        seed: Seed of the run; random numbers are keyed by it, the epoch, and the images' ids.
    """

    def __init__(self, device: torch.device, config: ViewsConfig, seed: int = 0) -> None:
        self.device, self._config, self._seed = device, config, seed
        self._transfer = TRANSFERS[device.type](device)

    def send_training(self, parts: Sequence[Batch], epoch: int) -> DeviceBatch:
        """Draw augmentations for a training batch, and send both.

        Args:
            parts: Pieces of the batch, each with `views`, `labels` and `ids` of some images.
        """
        host = _labels_and_ids(parts)
        num_views = parts[0]["views"].shape[1]
        drawn = draw_augmentations(
            host["ids"], self._config, num_views=num_views, seed=self._seed, epoch=epoch
        )
        return self._send(host, {**_views(parts), **_whole(drawn.arrays)}, drawn.passes)

    def send_evaluation(self, parts: Sequence[Batch]) -> DeviceBatch:
        """Send a batch for evaluation; `parts` as in `send_training`."""
        return self._send(_labels_and_ids(parts), _views(parts))

    def send_resident(
        self, images: Tensor, rows: NDArray[np.int64], host: Batch, *, num_views: int, epoch: int
    ) -> DeviceBatch:
        """Draw crops and augmentations for images on the device, send them, and crop there.

        Args:
            images: All images of the split, on the device, (R, H, W, 3) uint8.
            rows: Positions of the batch's images, (N,).
            host: `labels` and `ids` of the batch, (N,).
            num_views: 1 + V.
        """
        options = {"num_views": num_views, "seed": self._seed, "epoch": epoch}
        drawn = draw_augmentations(host["ids"], self._config, **options)
        crops = resident.draw_table_crops(host["ids"], self._config, **options)

        def with_views(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            views = resident.apply_crops(images, tensors["rows"], tensors["crops"])
            return {"views": views, **tensors}

        pieces = _whole({**drawn.arrays, "rows": rows, "crops": crops})
        return self._send(host, pieces, drawn.passes, with_views)

    def send_arrays(self, arrays: Batch) -> Mapping[str, Tensor]:
        """Send any arrays; returns tensors for use on the current stream."""
        return self._send({}, _whole(arrays)).arrived()

    def _send(
        self,
        host: Batch,
        pieces: Pieces,
        passes: Sequence[Pass] = (),
        finish: Finish = dict,  # which changes nothing
    ) -> DeviceBatch:
        tensors, copy_event = self._transfer({**pieces, **_whole(host)}, finish)
        return DeviceBatch(tensors, host, passes, copy_event)


def _whole(arrays: Batch) -> Pieces:
    """Arrays that are in one piece each."""
    return {name: [array] for name, array in arrays.items()}


def _views(parts: Sequence[Batch]) -> Pieces:
    return {"views": [part["views"] for part in parts]}


def _labels_and_ids(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in ("labels", "ids")}


def _to_cpu(pieces: Pieces, finish: Finish) -> tuple[dict[str, Tensor], None]:
    """Concatenate the pieces, which copies them: those from Ray are read-only."""
    arrays = {name: np.concatenate(parts) for name, parts in pieces.items()}
    return finish({name: torch.from_numpy(array) for name, array in arrays.items()}), None


class CudaTransfer:
    """Copies arrays to a GPU on a stream of its own, through page-locked buffers in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = itertools.cycle([_Buffer() for _ in range(_BUFFERS)])

    def __call__(self, pieces: Pieces, finish: Finish) -> tuple[dict[str, Tensor], Any]:
        """Fill a buffer with the pieces, and start its copy and the computation after it."""
        slots, size = _buffer_slots(pieces)
        buffer = next(self._buffers)
        host = buffer.reserve(size)
        for name, arrays in pieces.items():
            begin, end, dtype, shape = slots[name]
            np.concatenate(arrays, out=host[begin:end].view(dtype).reshape(shape))
        with torch.cuda.stream(self._stream):
            whole = torch.empty(size, dtype=torch.uint8, device=self._device)
            whole.copy_(buffer.tensor[:size], non_blocking=True)
            tensors = finish(_split_buffer(whole, slots))
            buffer.copy_event = torch.cuda.Event(blocking=True)
            buffer.copy_event.record(self._stream)
        return tensors, buffer.copy_event


Transfer = Callable[[Pieces, Finish], tuple[dict[str, Tensor], Any]]
TRANSFERS: dict[str, Callable[[torch.device], Transfer]]
TRANSFERS = {"cpu": lambda _device: _to_cpu, "cuda": CudaTransfer}


class _Slot(NamedTuple):
    """The place of an array in a buffer: bytes from `begin` until before `end`."""

    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _buffer_slots(pieces: Pieces) -> tuple[dict[str, _Slot], int]:
    """The slot of each array in one buffer, and the buffer's size in bytes."""
    slots, begin = {}, 0
    for name, arrays in pieces.items():
        first = arrays[0]
        shape = (sum(len(array) for array in arrays), *first.shape[1:])
        end = begin + first.dtype.itemsize * int(np.prod(shape))
        slots[name] = _Slot(begin, end, first.dtype, shape)
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
    return slots, begin  # where the next array would begin: the size


def _split_buffer(whole: Tensor, slots: Mapping[str, _Slot]) -> dict[str, Tensor]:
    """The arrays in a buffer, (bytes,) uint8, as tensors that share its memory."""
    tensors = {}
    for name, (begin, end, dtype, shape) in slots.items():
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        tensors[name] = whole[begin:end].view(torch_dtype).view(shape)
    return tensors


class _Buffer:
    """Page-locked memory, and the CUDA event after the last copy from it."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0, dtype=torch.uint8)
        self.copy_event: Any = None

    def reserve(self, size: int) -> NDArray[np.uint8]:
        """Memory of at least `size` bytes; waits until the last copy from it has ended."""
        if self.copy_event is not None:
            self.copy_event.synchronize()
        if len(self.tensor) < size:
            self.tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self.tensor.numpy()
