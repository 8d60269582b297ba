"""Batch normalisation over the images of all workers.

It replaces torch's `nn.SyncBatchNorm`, which does not run on CPUs, and whose layers on a GPU ask in
every step which workers have images, so that the host has to wait for the device. Here every
worker has the same number of images, as in every global batch, and there is nothing to ask.

On GPUs, torch's own kernels do the work: they store a third of what plain operations store for
backward, and need half as many kernel launches.

Axes: N images of a worker, C channels, W workers.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from bcl_ray.method.collectives import gather, gather_with_grad, world_size
from bcl_ray.method.precision import at_least_float32


class SyncBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) over the images of all workers; with one worker, torch's own."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...); in training, all workers have to call it together."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self.num_batches_tracked.add_(1)
        return BY_DEVICE[input.device.type](self, input)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes: projections have (N, C), the backbone has (N, C, H, W)."""


class FrozenBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) by its running statistics, which training does not change.

    Its weights are buffers: no optimiser has them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        weights = {name: self._parameters.pop(name) for name in ("weight", "bias")}
        for name, value in weights.items():
            assert value is not None, "norms without weights have none to freeze"
            self.register_buffer(name, value.detach())
        super().train(mode=False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":  # noqa: ARG002
        """Stay in evaluation mode."""
        return self

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes."""


# The classes for images and for vectors, by model.batch_norm. "classification_stats" is torch's
# own batch norm in a network that treats the classification view separately.
NORMS: dict[str, tuple[type[_BatchNorm], type[_BatchNorm]]] = {
    "per_worker": (nn.BatchNorm2d, nn.BatchNorm1d),
    "sync": (SyncBatchNorm, SyncBatchNorm),
    "classification_stats": (nn.BatchNorm2d, nn.BatchNorm1d),
    "frozen": (FrozenBatchNorm, SyncBatchNorm),
}


def _normalise_by_torch_ops(norm: SyncBatchNorm, input: Tensor) -> Tensor:
    axes = [axis for axis in range(input.ndim) if axis != 1]
    variances, means = torch.var_mean(at_least_float32(input), axes, correction=0)
    pieces = gather_with_grad(torch.stack([means, variances])[None], dim=0)  # (W, 2, C)
    mean = pieces[:, 0].mean(0)
    variance = pieces[:, 1].mean(0) + (pieces[:, 0] - mean).square().mean(0)
    count = input.numel() // input.shape[1] * world_size()
    norm.running_mean.lerp_(mean.detach(), norm.momentum)
    norm.running_var.lerp_(variance.detach() * count / (count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shape = [-1] + [1] * (input.ndim - 2)
    shift = (norm.bias - mean * scale).view(shape)
    return (input * scale.view(shape) + shift).to(input.dtype)


def _normalise_by_cuda_kernels(norm: SyncBatchNorm, input: Tensor) -> Tensor:
    if not input.is_contiguous(memory_format=torch.channels_last):
        input = input.contiguous()
    normalised: Tensor = _KernelBatchNorm.apply(
        input,
        norm.weight,
        norm.bias,
        (norm.running_mean, norm.running_var, norm.momentum),
        norm.eps,
    )
    return normalised


class _KernelBatchNorm(torch.autograd.Function):
    """torch's kernels for the parts of a batch norm, with a collective between them."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor, float],
        eps: float,
    ) -> Tensor:
        own = torch.stack(torch.batch_norm_stats(input, eps))  # (2, C): mean, 1 / deviation
        means, inverses = torch.stack(gather(own), dim=1)  # (W, C) each
        counts = means.new_full((world_size(),), input.numel() // input.shape[1])
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            input, means, inverses, *running, eps, counts
        )
        ctx.save_for_backward(input, weight, mean, inverse, counts)
        return torch.batch_norm_elemt(input, weight, bias, mean, inverse, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse, counts = ctx.saved_tensors
        if not grad.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous()
        # The gradients of weight and bias stay this worker's own: GradientSum sums them later.
        grad_sum, grad_product, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, input, mean, inverse, weight, True, True, True
        )
        sums = torch.stack([grad_sum, grad_product])
        dist.all_reduce(sums)
        grad_input = torch.batch_norm_backward_elemt(
            grad, input, mean, inverse, weight, sums[0], sums[1], counts.int()
        )
        return grad_input, grad_weight, grad_bias, None, None


# By the type of the device.
BY_DEVICE = {"cpu": _normalise_by_torch_ops, "cuda": _normalise_by_cuda_kernels}
