"""What workers tell each other: every function is the identity when run alone.

Losses are shares that add up over workers, so gradients are summed, never averaged, and no
factor of the world size appears anywhere. Axes: M = world_size * N images of all workers.
"""

import logging
from collections.abc import Iterable
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
    """The sum of every worker's tensor (any shape, the same on all), without gradient."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_with_grad(tensor: Tensor, dim: int) -> Tensor:
    """All workers' tensors, in the order of their ranks, concatenated along `dim`.

    Backward sums over workers what each of them derived for this worker's piece: with losses
    that are shares of one global loss, that is the gradient of the global loss.

    Args:
        tensor: the same shape on every worker; integer tensors pass without gradient.
        dim: the axis along which pieces are joined.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor, dim)


def gather_rows(tensor: Tensor) -> Tensor:
    """All workers' rows, in the order of their ranks, without gradient.

    Args:
        tensor: the same shape on every worker but for its first axis, and the same dtype.
    """
    if world_size() == 1:
        return tensor
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
    rows = [int(size) for size in sizes]
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])  # collectives want equal shapes
    padded[: len(tensor)] = tensor
    pieces = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, rows, strict=True)])


def begin_as_first_worker(model: nn.Module) -> None:
    """Give every worker the first one's weights and buffers, in place; say where they differed.

    Equal seeds make equal weights on machines of one kind; kernels of other CPUs may round
    otherwise, and runs that begin apart never meet.
    """
    if world_size() == 1:
        return
    tensors = [_in_memory_order(t.detach()) for t in (*model.parameters(), *model.buffers())]
    own = torch.stack([_checksum(tensor) for tensor in tensors])
    found = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(found, own)
    if rank() == 0:
        different = [str(n) for n, other in enumerate(found) if not torch.equal(other, found[0])]
        if different:
            logger.warning(
                "initial weights of workers %s differ from those of worker 0, which all have now: "
                "their machines round differently",
                ", ".join(different),
            )
    for tensor in tensors:
        dist.broadcast(tensor, 0)


def _checksum(tensor: Tensor) -> Tensor:
    """Of the bits of a tensor of one axis, a scalar; exact, in any order of the additions."""
    words = tensor.view(torch.int32).long()
    return (words * torch.arange(1, len(words) + 1, device=words.device)).sum()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        tensor = tensor.contiguous()
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(pieces, tensor)
        return torch.cat(pieces, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)  # gloo has no reduce_scatter
        return total.chunk(world_size(), ctx.dim)[rank()].contiguous(), None


class GradientSum:
    """Sums gradients over workers while backward still runs, one bucket at a time.

    Buckets are fixed by the order of the parameters. DistributedDataParallel rebuilds its own
    after the first step of each process, which changes the order of additions, so that a
    resumed run would not repeat an undisturbed one bit for bit. It also averages.

    Running statistics of batch norm travel along and are averaged at every step: they are the
    same on all workers at all times, so that any worker's state is the run's state.
    """

    def __init__(self, model: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._buckets = _buckets(model.parameters(), bucket_bytes)
        self._waiting = [len(bucket) for bucket in self._buckets]
        self._next = 0  # the first bucket that has not been sent
        self._pending: list[tuple[Any, Tensor, list[Tensor]]] = []
        if world_size() > 1:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket:
                    hook = self._arrived(number)
                    parameter.register_post_accumulate_grad_hook(hook)

    def _arrived(self, number: int) -> Any:
        def hook(_: Tensor) -> None:
            self._waiting[number] -= 1
            # In order of the buckets, as every worker must start the same collectives.
            while self._next < len(self._buckets) and self._waiting[self._next] == 0:
                self._send(self._buckets[self._next])
                self._next += 1

        return hook

    def _send(self, bucket: list[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
        self._reduce(gradients)

    def _reduce(self, tensors: list[Tensor]) -> None:
        if tensors:
            flat = torch.cat([_in_memory_order(tensor) for tensor in tensors])
            self._pending.append((dist.all_reduce(flat, async_op=True), flat, tensors))

    @torch.no_grad()
    def finish(self, terms: Tensor) -> None:
        """Wait until `.grad` holds the global batch's gradient; call after every backward.

        A parameter that the loss does not reach keeps none; it must be the same on all workers.

        Args:
            terms: shares of the loss, (T,), which become their sums over workers on the way.
        """
        if world_size() == 1:
            return
        for bucket in self._buckets[self._next :]:  # parameters that this loss does not reach
            self._send(bucket)
        if self._statistics:
            torch._foreach_div_(self._statistics, world_size())
        self._reduce([*self._statistics, terms])
        for work, flat, tensors in self._pending:
            work.wait()
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_([_in_memory_order(tensor) for tensor in tensors], parts)
        self._pending.clear()
        self._next = 0
        self._waiting = [len(bucket) for bucket in self._buckets]


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A view of all values, (numel,), in the order in which they lie; channels_last or not.

    `flatten` would copy tensors that are channels_last, here and on the way back.
    """
    return tensor.as_strided((tensor.numel(),), (1,))


def _buckets(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters from last to first, about the order of backward, in groups of one dtype."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        if not buckets or size >= bucket_bytes or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets
