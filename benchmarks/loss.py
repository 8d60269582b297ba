"""Balanced contrastive loss, forward and backward, against the published computation.

`python -m benchmarks.loss`: time with both sides in turn, memory with each step in a process of
its own. The last line is the ratio at iNaturalist's size.
"""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bcl_ray.method.losses import balanced_contrastive_loss
from benchmarks import alternate, print_table

SIZES = [(100, 256, 128), (1000, 256, 1024), (8142, 256, 1024), (100_000, 256, 1024)]  # K, N, D
V = 2
TEMPERATURE = 0.07
PUBLISHED_UP_TO = 8142  # at 100,000 its one-hot matrix alone would have 40 GB

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
ours: Loss = partial(balanced_contrastive_loss, temperature=TEMPERATURE)


def published(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    temperature: float = TEMPERATURE,
    row_by_row: bool = True,
) -> Tensor:
    """The authors' steps, written plainly: counts from a one-hot matrix, divisors row by row.

    Theirs has the matrix on the CPU, which torch now refuses for labels on a GPU.

    Args:
        features, prototypes, labels: as of `balanced_contrastive_loss`.
        temperature: divides similarities.
        row_by_row: whether divisors are looked up in a Python loop, as theirs.
    """
    anchors, device = features.flatten(0, 1), features.device
    num_anchors, num_classes = len(anchors), len(prototypes)
    columns = torch.cat([anchors, prototypes])
    targets = torch.cat([labels.repeat(V), torch.arange(num_classes, device=device)])
    counts = torch.eye(num_classes, device=device)[targets].sum(0)
    positive = (targets[:num_anchors, None] == targets).float()
    not_self = torch.ones_like(positive).fill_diagonal_(0)
    positive = positive * not_self
    similarity = anchors @ columns.T / temperature
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    class_sizes = counts[targets]
    if row_by_row:
        class_sizes = torch.tensor([counts[target] for target in targets], device=device)
    divisors = class_sizes.expand(num_anchors, -1) - positive
    denominator = (similarity.exp() * not_self / divisors).sum(1, keepdim=True)
    log_shares = similarity - denominator.log()
    return -((positive * log_shares).sum(1) / positive.sum(1)).mean()


def make_inputs(num_classes: int, num_images: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random unit vectors and long-tailed labels, without temporaries that would raise a peak."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(V, num_images, width, generator=generator)
    prototypes = torch.randn(num_classes, width, generator=generator)
    for vectors in (features, prototypes):
        vectors.div_(vectors.norm(dim=-1, keepdim=True)).requires_grad_()
    skewed = torch.rand(num_images, generator=generator) ** 3 * num_classes
    return features, prototypes, skewed.long()


def step(loss: Loss, features: Tensor, prototypes: Tensor, labels: Tensor) -> float:
    features.grad = prototypes.grad = None
    value = loss(features, prototypes, labels)
    value.backward()
    return value.item()


def report_memory(side: str, num_classes: int, num_images: int, width: int) -> None:
    """One step in this process; prints the peak of its resident memory beyond the inputs."""
    loss = {"ours": ours, "published": published}[side]
    step(loss, *make_inputs(10, 16, 8))  # pays for what torch loads at the first call
    inputs = make_inputs(num_classes, num_images, width)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    value = step(loss, *inputs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step": (peak - before) / 2**20, "loss": value}))


def memory(side: str, size: tuple[int, int, int]) -> dict[str, float]:
    """The leaner of two runs: a busy machine takes freed pages back late, never early."""
    command = [sys.executable, "-m", "benchmarks.loss", side, *map(str, size)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    figures: list[dict[str, float]] = [json.loads(done.stdout) for done in runs]
    return min(figures, key=lambda run: run["step"])


def products(features: Tensor, prototypes: Tensor, _: Tensor) -> None:
    """The three products of anchors with anchors and prototypes that an exact loss needs."""
    with torch.no_grad():
        anchors = features.flatten(0, 1)
        for columns in (anchors, prototypes):
            block = columns @ anchors.T
            block.T @ columns
            block @ anchors


def compare(size: tuple[int, int, int]) -> tuple[list[str], float, float]:
    """A table's row, and how many times faster and leaner this loss is; NaN without a rival."""
    inputs, num_classes = make_inputs(*size), size[0]
    mine, lean = partial(step, ours, *inputs), memory("ours", size)
    seconds, limit = alternate(mine, partial(products, *inputs), rounds=5)
    own = [f"{seconds * 1e3:.1f}", f"{seconds / num_classes * 1e6:.0f}", f"{limit * 1e3:.1f}"]
    if num_classes > PUBLISHED_UP_TO:
        needed = (V * size[1] + num_classes) * num_classes * 4 / 2**20
        rival, leaner, faster, ratio = ["-", "-"], [f">{needed:,.0f}", "-"], math.nan, math.nan
    else:
        seconds, theirs = alternate(mine, partial(step, published, *inputs), rounds=7)
        full = memory("published", size)
        torch.testing.assert_close(lean["loss"], full["loss"], rtol=1e-4, atol=0)
        faster, ratio = theirs / seconds, full["step"] / lean["step"]
        rival = [f"{theirs * 1e3:.1f}", f"{faster:.1f}"]
        leaner = [f"{full['step']:,.0f}", f"{ratio:.1f}"]
    return [str(num_classes), *own, *rival, f"{lean['step']:,.0f}", *leaner], faster, ratio


def main() -> None:
    results = {size: compare(size) for size in SIZES}
    title = "Forward + backward, N = 256, D = 1024 (128 at K = 100), V = 2, float32"
    columns = ["K", "ms", "us/K", "limit", "publ. ms", "x", "MiB", "publ.", "x"]
    print_table(title, columns, [row for row, *_ in results.values()])
    print("limit: ms of the matrix products alone, which both sides share.")
    print("MiB: peak beyond the inputs, gradients included; published at K = 100000: its one-hot")
    print("matrix alone, (2 N + K) * K * 4 bytes.")
    _, faster, leaner = results[SIZES[2]]
    print(f"K = 8142: {faster:.1f} x faster, {leaner:.1f} x less memory than as published")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        report_memory(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()
