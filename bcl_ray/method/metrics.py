"""Evaluation in two steps: counts that add up over batches and workers, then percentages.

Axes: N images, K classes, T temperatures.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.views.keyed import uniforms
from bcl_ray.method.collectives import sum_over_workers

CALIBRATION_BINS = 15  # Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599
# Of softmax(logits / temperature), (T,): evenly spaced on a log scale, 15 % apart.
TEMPERATURES = np.geomspace(0.1, 10, 33)
STREAM = 8  # keeps the halves independent of whatever else is keyed by ids


@dataclass(frozen=True)
class EvaluationCounts:
    """What evaluation has seen so far, in float64 on the device; `+` joins two parts."""

    correct: Tensor
    """Images whose largest logit is their class, by class, (K,)."""
    total: Tensor
    """Images by class, (K,)."""
    bins: Tensor
    """By confidence, in bins of equal width: images, summed confidence, correct; (15, 3)."""
    nll: Tensor
    """Summed negative log-likelihood in nats, a scalar."""
    tempered_nll: Tensor
    """The same of either half of the images at each temperature, (2, T)."""
    tempered_bins: Tensor
    """`bins` of either half of the images at each temperature, (2, T, 15, 3)."""

    def __add__(self, other: "EvaluationCounts") -> "EvaluationCounts":
        return EvaluationCounts(*map(torch.add, vars(self).values(), vars(other).values()))

    def over_workers(self) -> "EvaluationCounts":
        """The sum of all workers' counts, the same on each of them."""
        return EvaluationCounts(*map(sum_over_workers, vars(self).values()))


def no_counts(num_classes: int, device: torch.device | str) -> EvaluationCounts:
    """Where counting starts."""
    grid, bins = (2, len(TEMPERATURES)), (CALIBRATION_BINS, 3)
    shapes = ((num_classes,), (num_classes,), bins, (), grid, grid + bins)
    zeros = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
    return EvaluationCounts(*zeros)


@torch.no_grad()
def count_batch(logits: Tensor, labels: Tensor, ids: NDArray[np.int64]) -> EvaluationCounts:
    """Counts of one batch, without a read by the host.

    Args:
        logits: (N, K), before softmax and without any prior.
        labels: (N,), int64 in [0, K).
        ids: the images' stable numbers, (N,), which deal them out to two halves.
    """
    counts = no_counts(logits.shape[1], logits.device)
    largest, predicted = logits.float().max(dim=1)
    logits = logits.float() - largest[:, None]  # those of the predicted class are 0
    of_label = logits.gather(1, labels[:, None])[:, 0]
    hit = (predicted == labels).double()
    ones = torch.ones_like(hit)
    half = torch.from_numpy(uniforms(0, 0, ids, 0, 1, stream=STREAM)[:, 0] < 0.5).long()
    half = half.to(logits.device, non_blocking=True)
    # One temperature after another: all at once would need T times the logits' memory.
    normalizers = [(logits / t).logsumexp(dim=1) for t in (1.0, *TEMPERATURES.tolist())]
    temperatures = _temperatures(logits.device)
    normalizer = torch.stack(normalizers, dim=1)  # (N, 1 + T)
    confidence = (-normalizer).exp().double()
    nll = (normalizer - of_label[:, None] / temperatures).double()
    # Bins are (low, high], so that full confidence lies in the last one.
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    rows = torch.stack([ones[:, None].expand_as(bins), confidence, hit[:, None].expand_as(bins)], 2)
    numbers = torch.arange(len(TEMPERATURES), device=half.device)
    of_half = half[:, None] * len(TEMPERATURES) + numbers
    places = of_half * CALIBRATION_BINS + bins[:, 1:]
    return EvaluationCounts(
        correct=counts.correct.index_add(0, labels, hit),
        total=counts.total.index_add(0, labels, ones),
        bins=counts.bins.index_add(0, bins[:, 0], rows[:, 0]),
        nll=nll[:, 0].sum(),
        tempered_nll=counts.tempered_nll.index_add(0, half, nll[:, 1:]),
        tempered_bins=counts.tempered_bins.view(-1, 3)
        .index_add(0, places.flatten(), rows[:, 1:].flatten(0, 1))
        .view_as(counts.tempered_bins),
    )


@lru_cache(16)
def _temperatures(device: torch.device) -> Tensor:
    """1 and TEMPERATURES; sent to a device once, for it would be waited for."""
    return torch.from_numpy(np.array([1.0, *TEMPERATURES])).float().to(device)


def evaluation_metrics(counts: EvaluationCounts, class_counts: ArrayLike) -> dict[str, float]:
    """All that an evaluation reports: accuracy/*, calibration/* and loss/nll.

    calibration/ece is that of softmax(logits), calibration/temperature what calibrates them, and
    calibration/ece_calibrated the error after that, of images that the temperature was not fitted
    to; left out where there are too few images for two halves.

    Args:
        counts: of the whole split, over all workers.
        class_counts: training images per class, (K,).
    """
    found = {
        **shot_accuracy(counts.correct, counts.total, class_counts),
        "calibration/ece": expected_calibration_error(counts.bins),
        "calibration/temperature": best_temperature(counts.tempered_nll.sum(0)),
        "loss/nll": (counts.nll / counts.total.sum()).item(),
    }
    bins = calibrated_bins(counts)
    if bins is not None:
        found["calibration/ece_calibrated"] = expected_calibration_error(bins)
    return found


def best_temperature(nll: Tensor) -> float:
    """The temperature with the smallest negative log-likelihood, in [0.1, 10].

    The minimum of the parabola through the smallest of `nll` and its two neighbours, on the
    scale of the temperature's logarithm.

    Args:
        nll: at each of TEMPERATURES, (T,).

    Temperature scaling: Guo et al., ICML 2017, section 4.2.
    """
    values, grid = nll.cpu().numpy(), np.log(TEMPERATURES)
    smallest = int(values.argmin())
    if not 0 < smallest < len(values) - 1:
        return float(TEMPERATURES[smallest])
    before, at, after = values[smallest - 1 : smallest + 2]
    curvature = before - 2 * at + after
    shift = 0.5 * (before - after) / curvature if curvature > 0 else 0.0
    return math.exp(grid[smallest] + shift * (grid[1] - grid[0]))


def calibrated_bins(counts: EvaluationCounts) -> Tensor | None:
    """Bins as `EvaluationCounts.bins`, each half of the images at the other's temperature.

    A temperature that was fitted to the images that it is judged by would look better than it
    is. It is the nearest of TEMPERATURES here, since bins cannot be counted in between.

    Returns:
        (15, 3); None where one half has no image.
    """
    if (counts.tempered_bins[:, 0, :, 0].sum(1) == 0).any():
        return None
    fitted = [abs(np.log(TEMPERATURES / best_temperature(nll))) for nll in counts.tempered_nll]
    halves = zip(counts.tempered_bins, fitted[::-1], strict=True)
    return torch.stack([bins[int(distance.argmin())] for bins, distance in halves]).sum(0)


def class_accuracy(correct: Tensor, total: Tensor) -> Tensor:
    """Top-1 accuracy of each class in per cent, (K,); NaN where there is no image."""
    return 100 * correct / total


def shot_accuracy(correct: Tensor, total: Tensor, class_counts: ArrayLike) -> dict[str, float]:
    """Class-mean top-1 accuracy in per cent over all, many-, medium- and few-shot classes.

    A class without test images is not part of a mean, and a group without such a class is left
    out, not reported as 0.

    Args:
        correct: test images that were classified correctly, by class, (K,).
        total: test images by class, (K,).
        class_counts: training images by class, (K,), which decide the groups.

    Returns:
        accuracy/all, and accuracy/many, accuracy/medium and accuracy/few where they exist.
    """
    accuracy = class_accuracy(correct, total).cpu()
    groups = {"all": torch.arange(len(accuracy))}
    groups |= {name: torch.from_numpy(of) for name, of in shot_groups(class_counts).items()}
    means = {f"accuracy/{name}": accuracy[of].nanmean().item() for name, of in groups.items()}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def expected_calibration_error(bins: Tensor) -> float:
    """Mean distance between confidence and accuracy over bins of confidence, in per cent.

    Args:
        bins: images, summed confidence and correct images of each bin, (bins, 3).

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    images, confidence, correct = bins.unbind(dim=1)
    return (100 * (correct - confidence).abs().sum() / images.sum()).item()
