"""Accuracy and calibration: counts that sum over batches and workers, then percentages.

Axes: N images, K classes, T temperatures.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bcl_ray.data.keyed import Stream, uniforms
from bcl_ray.data.longtail import shot_groups
from bcl_ray.experiment import metric_names
from bcl_ray.method.collectives import sum_over_workers

CALIBRATION_BINS = 15  # Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599
TEMPERATURES = np.geomspace(0.1, 10, 33)  # (T,); each is 15 % larger than the one before


@dataclass(frozen=True)
class EvaluationCounts:
    """Counts of the images evaluated so far, in float64 on the device; `+` adds two of them.

    The images are split at random into two halves, so that a temperature fitted to one half can be
    judged on the other.
    """

    correct: Tensor
    """Correctly classified images of each class, (K,)."""
    total: Tensor
    """Images of each class, (K,)."""
    bins: Tensor
    """For 15 equal bins of confidence: images, summed confidence, and correct images, (15, 3)."""
    nll: Tensor
    """Sum of the negative log-likelihoods in nats, a scalar."""
    tempered_nll: Tensor
    """The same for each half and with logits divided by each temperature, (2, T)."""
    tempered_bins: Tensor
    """`bins` for each half and each temperature, (2, T, 15, 3)."""

    def __add__(self, other: "EvaluationCounts") -> "EvaluationCounts":
        return EvaluationCounts(*map(torch.add, vars(self).values(), vars(other).values()))

    def over_workers(self) -> "EvaluationCounts":
        """The sum of all workers' counts, the same on each of them."""
        return EvaluationCounts(*map(sum_over_workers, vars(self).values()))


def empty_counts(num_classes: int, device: torch.device | str) -> EvaluationCounts:
    """Counts of no images."""
    grid, bins = (2, len(TEMPERATURES)), (CALIBRATION_BINS, 3)
    shapes = ((num_classes,), (num_classes,), bins, (), grid, grid + bins)
    zeros = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
    return EvaluationCounts(*zeros)


@torch.no_grad()
def count_batch(logits: Tensor, labels: Tensor, ids: NDArray[np.int64]) -> EvaluationCounts:
    """Counts of one batch; the host reads no value of a tensor.

    Args:
        logits: Logits before softmax, without a prior, (N, K).
        labels: Class of each image, (N,), int64 in [0, K).
        ids: Stable numbers of the images, (N,), which decide to which half each belongs.
    """
    counts = empty_counts(logits.shape[1], logits.device)
    largest, predicted = logits.float().max(dim=1)
    logits = logits.float() - largest[:, None]  # now 0 for the predicted class
    label_logits = logits.gather(1, labels[:, None])[:, 0]
    hit = (predicted == labels).double()
    ones = torch.ones_like(hit)
    half = torch.from_numpy(uniforms(0, 0, ids, 0, 1, stream=Stream.HALVES)[:, 0] < 0.5).long()
    half = half.to(logits.device, non_blocking=True)
    # One temperature after another: all at once would need T times the memory of the logits.
    normalizers = [(logits / t).logsumexp(dim=1) for t in (1.0, *TEMPERATURES.tolist())]
    normalizer = torch.stack(normalizers, dim=1)  # (N, 1 + T)
    confidence = (-normalizer).exp().double()
    nll = (normalizer - label_logits[:, None] / _temperatures(logits.device)).double()
    # Bins include their upper bound, so that a confidence of 1 lies in the last one.
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    rows = torch.stack([ones[:, None].expand_as(bins), confidence, hit[:, None].expand_as(bins)], 2)
    numbers = torch.arange(len(TEMPERATURES), device=half.device)
    cells = (half[:, None] * len(TEMPERATURES) + numbers) * CALIBRATION_BINS + bins[:, 1:]
    return EvaluationCounts(
        correct=counts.correct.index_add(0, labels, hit),
        total=counts.total.index_add(0, labels, ones),
        bins=counts.bins.index_add(0, bins[:, 0], rows[:, 0]),
        nll=nll[:, 0].sum(),
        tempered_nll=counts.tempered_nll.index_add(0, half, nll[:, 1:]),
        tempered_bins=counts.tempered_bins.view(-1, 3)
        .index_add(0, cells.flatten(), rows[:, 1:].flatten(0, 1))
        .view_as(counts.tempered_bins),
    )


@lru_cache(16)
def _temperatures(device: torch.device) -> Tensor:
    """1 and TEMPERATURES, (1 + T,); cached, because copying them makes the host wait."""
    return torch.from_numpy(np.array([1.0, *TEMPERATURES])).float().to(device)


def evaluation_metrics(counts: EvaluationCounts, class_counts: ArrayLike) -> dict[str, float]:
    """The metrics of an evaluation, by name: accuracy/*, calibration/* and loss/nll.

    calibration/ece is the calibration error of softmax(logits). calibration/temperature is the
    temperature that calibrates them, and calibration/ece_calibrated the error at that temperature,
    fitted to other images; it is left out if one half of the images is empty.

    Args:
        counts: Counts of the whole split, over all workers.
        class_counts: Training images of each class, (K,).
    """
    values = {
        **shot_accuracy(counts.correct, counts.total, class_counts),
        metric_names.ECE: expected_calibration_error(counts.bins),
        metric_names.TEMPERATURE: best_temperature(counts.tempered_nll.sum(0)),
        metric_names.NLL: (counts.nll / counts.total.sum()).item(),
    }
    bins = calibrated_bins(counts)
    if bins is not None:
        values[metric_names.ECE_CALIBRATED] = expected_calibration_error(bins)
    return values


def best_temperature(nll: Tensor) -> float:
    """The temperature with the smallest negative log-likelihood, in [0.1, 10].

    It is the minimum of the parabola through the smallest value of `nll` and its two neighbours,
    over the logarithm of the temperature.

    Args:
        nll: Negative log-likelihood at each of TEMPERATURES, (T,).

    Source: temperature scaling, Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    section 4.2, https://arxiv.org/abs/1706.04599.
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
    """`EvaluationCounts.bins` after calibration, each half at the temperature of the other half.

    A temperature would look too good on the images that it was fitted to. Bins are counted only at
    TEMPERATURES, so the nearest of these is used.

    Returns:
        Images, summed confidence and correct images of each bin, (15, 3); None if one half of the
        images is empty.
    """
    if (counts.tempered_bins[:, 0, :, 0].sum(1) == 0).any():
        return None
    fitted = [best_temperature(nll) for nll in counts.tempered_nll]
    nearest = [int(abs(np.log(TEMPERATURES / temperature)).argmin()) for temperature in fitted]
    # Reversed: each half is judged at the temperature that was fitted to the other.
    halves = zip(counts.tempered_bins, reversed(nearest), strict=True)
    return torch.stack([bins[temperature] for bins, temperature in halves]).sum(0)


def class_accuracy(correct: Tensor, total: Tensor) -> Tensor:
    """Top-1 accuracy of each class in per cent, (K,); NaN for a class without images.

    Args:
        correct: Correctly classified images of each class, (K,).
        total: Images of each class, (K,).
    """
    return 100 * correct / total


def shot_accuracy(correct: Tensor, total: Tensor, class_counts: ArrayLike) -> dict[str, float]:
    """Mean top-1 accuracy of the classes in per cent: all, and those of each shot group.

    Classes without test images are left out of the means. A group without any other class has no
    entry, rather than an accuracy of 0.

    Args:
        correct: Correctly classified test images of each class, (K,).
        total: Test images of each class, (K,).
        class_counts: Training images of each class, (K,), which determine the groups.

    Returns:
        accuracy/all, and accuracy/many, accuracy/medium and accuracy/few where they exist.
    """
    accuracy = class_accuracy(correct, total).cpu()
    groups = {"all": torch.arange(len(accuracy))}
    groups |= {name: torch.from_numpy(of) for name, of in shot_groups(class_counts).items()}
    means = {
        metric_names.accuracy(name): accuracy[classes].nanmean().item()
        for name, classes in groups.items()
    }
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def expected_calibration_error(bins: Tensor) -> float:
    """Mean of |accuracy - confidence| over bins of confidence, weighted by images, in per cent.

    Args:
        bins: Images, summed confidence and correct images of each bin, (bins, 3).

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3,
    https://arxiv.org/abs/1706.04599.
    """
    images, confidence, correct = bins.unbind(dim=1)
    return (100 * (correct - confidence).abs().sum() / images.sum()).item()
