"""Communication between workers; with one worker, every function is the identity.

Losses are shares that sum to the global loss. Gradients are therefore summed over workers, never
averaged, and no factor of the world size appears anywhere.

Axes: M = world_size * N images of all workers.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

logger = logging.getLogger(__name__)

BUCKET_BYTES = 25 * 2**20  # as torch's DistributedDataParallel; assumption, not measured


def world_size() -> int:
    """Number of workers; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number in [0, world_size)."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The sum of all workers' tensors, which have the same shape; without gradients."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather(tensor: Tensor) -> list[Tensor]:
    """All workers' tensors, which have the same shape, in the order of ranks; without gradients."""
    if world_size() == 1:
        return [tensor]
    pieces = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(pieces, tensor)
    return pieces


def gather_with_grad(tensor: Tensor, dim: int) -> Tensor:
    """All workers' tensors, concatenated along `dim` in the order of ranks.

    Backward sums all workers' gradients for this worker's piece. If each worker's loss is its
    share of one global loss, the sum is the gradient of the global loss.

    Args:
        tensor: Has the same shape on every worker; integers have no gradient.
        dim: The axis to concatenate along.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor, dim)


def gather_rows(tensor: Tensor) -> Tensor:
    """All workers' rows in the order of ranks, without gradients.

    Args:
        tensor: The number of rows may differ between workers; the other axes and the dtype are
            the same on all of them.
    """
    if world_size() == 1:
        return tensor
    rows = [int(size) for size in gather(torch.tensor([len(tensor)], device=tensor.device))]
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])  # collectives need equal shapes
    padded[: len(tensor)] = tensor
    return torch.cat([piece[:size] for piece, size in zip(gather(padded), rows, strict=True)])


def broadcast_initial_state(model: nn.Module) -> None:
    """Copy worker 0's weights and buffers to all workers, in place; warn if they differed.

    Equal seeds give equal weights only on machines of one kind: other CPUs' kernels may round
    differently, and workers that start from different weights would stay different.
    """
    if world_size() == 1:
        return
    tensors = [_in_memory_order(t.detach()) for t in (*model.parameters(), *model.buffers())]
    checksums = gather(torch.stack([_checksum(tensor) for tensor in tensors]))
    if rank() == 0:
        different = [
            str(n) for n, other in enumerate(checksums) if not torch.equal(other, checksums[0])
        ]
        if different:
            logger.warning(
                "the initial weights of workers %s differ from those of worker 0, because their "
                "machines round differently; all workers now have those of worker 0",
                ", ".join(different),
            )
    for tensor in tensors:
        dist.broadcast(tensor, 0)


def _checksum(tensor: Tensor) -> Tensor:
    """Integer checksum of a tensor's bits, a scalar; the order of additions does not change it."""
    words = tensor.view(torch.int32 if tensor.element_size() % 4 == 0 else torch.uint8).long()
    return (words * torch.arange(1, len(words) + 1, device=words.device)).sum()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return torch.cat(gather(tensor.contiguous()), dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)  # gloo has no reduce_scatter
        return total.chunk(world_size(), ctx.dim)[rank()].contiguous(), None


class GradientSum:
    """Sums gradients over workers, one bucket at a time, while backward is still running.

    It replaces DistributedDataParallel, which averages, and which forms new buckets after the
    first step of each process. New buckets change the order of additions, so a resumed run would
    not repeat an uninterrupted one bit for bit. Here the order of the parameters determines the
    buckets.

    Batch norm's running statistics are averaged over workers in the same step, except for those of
    modules in evaluation mode, which do not change. They are therefore always the same on all
    workers, and the state of any worker is the state of the run.

    Args:
        model: The network, whose gradients and buffers are changed in place.
        bucket_bytes: When a bucket has reached this size, the next parameter begins another one.
    """

    def __init__(self, model: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._statistics = {  # a module of each buffer, which several modules may share
            buffer: module
            for module in model.modules()
            for buffer in module.buffers(recurse=False)
            if buffer.is_floating_point()
        }
        self._buckets = _buckets(model.parameters(), bucket_bytes)
        self._missing = [len(bucket) for bucket in self._buckets]  # gradients still to come
        self._next = 0  # the first bucket whose sum has not been started
        self._pending: list[tuple[Any, Tensor, list[Tensor]]] = []
        if world_size() > 1:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(self._make_hook(number))

    def _make_hook(self, number: int) -> Callable[[Tensor], None]:
        def start_complete_buckets(_: Tensor) -> None:
            self._missing[number] -= 1
            # In the order of buckets, because all workers must start the same collectives.
            while self._next < len(self._buckets) and self._missing[self._next] == 0:
                self._start_bucket(self._buckets[self._next])
                self._next += 1

        return start_complete_buckets

    def _start_bucket(self, bucket: list[nn.Parameter]) -> None:
        self._start_sum([parameter.grad for parameter in bucket if parameter.grad is not None])

    def _start_sum(self, tensors: list[Tensor]) -> None:
        if tensors:
            flat = torch.cat([_in_memory_order(tensor) for tensor in tensors])
            self._pending.append((dist.all_reduce(flat, async_op=True), flat, tensors))

    @torch.no_grad()
    def finish(self, terms: Tensor) -> None:
        """Wait until `.grad` holds the global batch's gradient; call after every backward.

        A parameter that the loss does not depend on keeps no gradient; all workers must have the
        same such parameters.

        Args:
            terms: This worker's shares of the terms of the loss, and other numbers to sum, (T,);
                overwritten with their sums over workers.
        """
        if world_size() == 1:
            return
        # The first bucket that lacks gradients, and all after it.
        for bucket in self._buckets[self._next :]:
            self._start_bucket(bucket)
        statistics = [buffer for buffer, module in self._statistics.items() if module.training]
        if statistics:
            torch._foreach_div_(statistics, world_size())
        self._start_sum([*statistics, terms])
        for work, flat, tensors in self._pending:
            work.wait()
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_([_in_memory_order(tensor) for tensor in tensors], parts)
        self._pending.clear()
        self._next = 0
        self._missing = [len(bucket) for bucket in self._buckets]


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A view of all values in the order in which they lie in memory, (numel,).

    `flatten` would copy channels_last tensors, both here and on the way back.
    """
    return tensor.as_strided((tensor.numel(),), (1,))


def _buckets(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Groups of parameters of one dtype, from last to first, about the order of backward."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        if not buckets or size >= bucket_bytes or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets
