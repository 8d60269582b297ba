"""Evaluation in two steps: counts that add up over batches and workers, then percentages.

Axes: N images, K classes.
"""

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from bcl_ray.distributed import sum_over_workers
from bcl_ray.longtail import shot_groups

CALIBRATION_BINS = 15  # Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599


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

    def __add__(self, other: "EvaluationCounts") -> "EvaluationCounts":
        return EvaluationCounts(*map(torch.add, vars(self).values(), vars(other).values()))

    def over_workers(self) -> "EvaluationCounts":
        """The sum of all workers' counts, the same on each of them."""
        return EvaluationCounts(*map(sum_over_workers, vars(self).values()))


def no_counts(num_classes: int, device: torch.device | str) -> EvaluationCounts:
    """Where counting starts."""
    shapes = ((num_classes,), (num_classes,), (CALIBRATION_BINS, 3), ())
    zeros = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
    return EvaluationCounts(*zeros)


@torch.no_grad()
def count_batch(logits: Tensor, labels: Tensor) -> EvaluationCounts:
    """Counts of one batch, without a read by the host.

    Args:
        logits: (N, K), before softmax and without any prior.
        labels: (N,), int64 in [0, K).
    """
    counts = no_counts(logits.shape[1], logits.device)
    log_probabilities = functional.log_softmax(logits.float(), dim=1)
    log_confidence, predicted = log_probabilities.max(dim=1)
    confidence = log_confidence.exp().double()
    hit = (predicted == labels).double()
    ones = torch.ones_like(hit)
    # Bins are (low, high], so that full confidence lies in the last one.
    bin_index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    return EvaluationCounts(
        correct=counts.correct.index_add(0, labels, hit),
        total=counts.total.index_add(0, labels, ones),
        bins=counts.bins.index_add(0, bin_index, torch.stack([ones, confidence, hit], dim=1)),
        nll=functional.nll_loss(log_probabilities, labels, reduction="none").double().sum(),
    )


def evaluation_metrics(counts: EvaluationCounts, class_counts: ArrayLike) -> dict[str, float]:
    """All that an evaluation reports: accuracy/*, calibration/ece and loss/nll.

    Args:
        counts: of the whole split, over all workers.
        class_counts: training images per class, (K,).
    """
    return {
        **shot_accuracy(counts.correct, counts.total, class_counts),
        "calibration/ece": expected_calibration_error(counts.bins),
        "loss/nll": (counts.nll / counts.total.sum()).item(),
    }


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
