"""Batch norm over all workers with torch's kernels, simulated on CPUs.

The kernels exist for GPUs alone. Here they are written out, by the definitions of what they
compute, so that three real processes can show that their parts are put together rightly; that
torch's kernels compute the same is shown on a GPU (test_gpu.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bcl_ray.method import batch_norm
from bcl_ray.method.batch_norm import SyncBatchNorm

WORKERS, N, C = 3, 4, 5
SHAPES = {"vectors": (N, C), "images": (N, C, 2, 3)}


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 2))


def _axes(input: Tensor) -> list[int]:
    return [axis for axis in range(input.ndim) if axis != 1]


def stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(input, _axes(input), correction=0)
    return mean, (variance + eps).rsqrt()


def gather_stats(
    input: Tensor,
    means: Tensor,
    inverses: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    shares = (counts / counts.sum())[:, None]
    mean = (means * shares).sum(0)
    squares = inverses.pow(-2) - eps + means.square()
    variance = (squares * shares).sum(0) - mean.square()
    total = counts.sum()
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def elemt(
    input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    parts = [_per_channel(part, input) for part in (mean, inverse * weight, bias)]
    return (input - parts[0]) * parts[1] + parts[2]


def backward_reduce(
    grad: Tensor, input: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, *_: bool
) -> tuple[Tensor, ...]:
    total = grad.sum(_axes(input))
    product = (grad * (input - _per_channel(mean, input))).sum(_axes(input))
    return total, product, product * inverse, total.clone()


def backward_elemt(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    of_sum: Tensor,
    of_product: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32  # as the kernel wants it
    means = [_per_channel(part / counts.sum(), input) for part in (of_sum, of_product)]
    centred = (input - _per_channel(mean, input)) * _per_channel(inverse.square(), input)
    return (grad - means[0] - centred * means[1]) * _per_channel(inverse * weight, input)


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather_stats,
    "batch_norm_elemt": elemt,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_elemt,
}


def normalised(shape: tuple[int, ...], worker: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    size = (WORKERS * N, *shape[1:])
    values = torch.randn(size, generator=generator, dtype=torch.float64)[worker * N :][:N]
    values += torch.arange(C).view(-1, *[1] * (len(shape) - 2))
    norm = SyncBatchNorm(C).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, C + 1))
        norm.bias.copy_(torch.arange(C))
    input = values.clone().requires_grad_()
    result = norm(input)
    (result * torch.arange(result.numel()).view_as(result)).sum().backward()
    return {
        "result": result.detach(),
        "to input": input.grad,
        "to weight": norm.weight.grad,
        "to bias": norm.bias.grad,
        "statistics": norm.state_dict(),
    }


def process(worker: int, folder: str) -> None:
    torch.set_num_threads(1)
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    options = {"rank": worker, "world_size": WORKERS}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", **options)
    found = {}
    for how in ("_normalise_by_torch_ops", "_normalise_by_cuda_kernels"):
        batch_norm.BY_DEVICE["cpu"] = getattr(batch_norm, how)
        found[how] = {name: normalised(shape, worker) for name, shape in SHAPES.items()}
    torch.save(found, Path(folder) / f"{worker}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("batch-norm")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{worker}.pt", weights_only=True) for worker in range(WORKERS)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_with_kernels_results_gradients_and_statistics_are_those_with_operations(shape, workers):
    for found in workers:
        torch.testing.assert_close(
            found["_normalise_by_cuda_kernels"][shape],
            found["_normalise_by_torch_ops"][shape],
            rtol=1e-9,
            atol=1e-9,
        )
