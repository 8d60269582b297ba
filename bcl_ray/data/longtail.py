"""Long-tailed class distributions: how many images each class gets, and which ones.

Axes: K classes, N images of the source. Classes are in label order, from the largest to the
smallest.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bcl_ray.experiment.choices import Profile
from bcl_ray.experiment.metric_names import SHOT_GROUPS
from bcl_ray.machine.errors import UserError

# Limits of the shot groups in training images, from Liu et al., CVPR 2019 (OLTR).
MANY = 100  # a many-shot class has more
FEW = 20  # a few-shot class has fewer

# How far down the tail each class is, given K: 0 for n_max images, 1 for n_max / imbalance_factor.
_DEPTHS: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "exponential": lambda classes: np.arange(classes) / max(classes - 1, 1),
    "step": lambda classes: (np.arange(classes) >= classes // 2).astype(np.float64),
}


def class_counts_for(
    profile: Profile,
    available: ArrayLike,
    *,
    imbalance_factor: float | None,
    max_per_class: int | None,
) -> NDArray[np.int64]:
    """Training images per class under a profile.

    exponential: n_i = floor(n_max * imbalance_factor ** (-i / (K - 1))).
    step: n_max in the first half of the classes, floor(n_max / imbalance_factor) in the others.
    natural: all images of the source.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019.

    Args:
        available: Images of each class in the source, (K,).
        imbalance_factor: n_max / n_min, at least 1. The natural profile ignores it.
        max_per_class: n_max; for the natural profile, an upper limit. None: the largest n_max for
            which every class has enough images.

    Returns:
        Counts, (K,), each at least 1 except for empty classes under the natural profile.

    Raises:
        ValueError: An option is out of range, a class would be empty, or a class has fewer images
            than the profile needs.
    """
    have = np.asarray(available, dtype=np.int64)
    if have.ndim != 1 or have.size == 0:
        raise UserError(f"available must hold one count per class, got shape {have.shape}")
    if max_per_class is not None and max_per_class < 1:
        raise UserError(f"max_per_class ({max_per_class}) must be at least 1")
    largest = int(have.max()) if max_per_class is None else max_per_class
    if profile == "natural":
        return np.minimum(have, largest)
    if imbalance_factor is None or not imbalance_factor >= 1:
        raise UserError(
            f"imbalance_factor ({imbalance_factor}) must be at least 1 for profile '{profile}': "
            "it is the largest class over the smallest"
        )
    if profile not in _DEPTHS:
        raise UserError(f"profile '{profile}' must be exponential, step or natural")
    shares = (1 / imbalance_factor) ** _DEPTHS[profile](have.size)
    counts = _floor(largest * shares)
    if max_per_class is None:
        while (counts > have).any() and counts.min() > 0:
            largest -= 1
            counts = _floor(largest * shares)
    _check_counts(counts, have, profile, imbalance_factor)
    return counts


def _floor(values: NDArray[np.float64]) -> NDArray[np.int64]:
    # The margin keeps 49 * (1 / 49) at 1: without it, rounding would empty the last class.
    return np.floor(values + 1e-9).astype(np.int64)


def _check_counts(
    counts: NDArray[np.int64], have: NDArray[np.int64], profile: str, imbalance_factor: float
) -> None:
    if counts.min() < 1:
        raise UserError(
            f"imbalance_factor ({imbalance_factor:g}) leaves class {int(counts.argmin())} without "
            f"images: with {counts.max()} in the largest class it can be at most {counts.max()}"
        )
    short = np.flatnonzero(have < counts)
    if short.size:
        first = int(short[0])
        raise UserError(
            f"profile '{profile}' asks for {counts[first]} images of class {first}, and the source "
            f"has {have[first]} ({short.size} classes fall short): lower max_per_class or raise "
            "imbalance_factor"
        )


def select_rows(
    labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
    *,
    seed: int,
    already_shuffled: bool,
    bad: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Rows of the source that a profile selects, rising.

    They are the first rows of each class in an order that the seed fixes. So for the same seed, a
    smaller profile selects a subset of the rows of a larger one, and a row that turns out to be bad
    is replaced by the next one of its class.

    Args:
        labels: Class of each row, (N,). Rows with a label outside 0..K-1 are never selected.
        class_counts: Rows to select of each class, (K,), at most as many as are not bad.
        seed: Seed of the order within each class.
        already_shuffled: Whether the rows of a class are in random order, which is then used.
        bad: Which rows are never selected, (N,), and yet have their place in the order.
    """
    by_class = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[by_class], np.arange(len(class_counts) + 1))
    selected = []
    for label, count in enumerate(class_counts):
        rows = by_class[bounds[label] : bounds[label + 1]]
        if not already_shuffled and count < len(rows):
            rows = np.random.default_rng([seed, label]).permutation(rows)
        if bad is not None:
            rows = rows[~bad[rows]]
        selected.append(rows[:count])
    return np.sort(np.concatenate(selected))


def shot_groups(class_counts: ArrayLike) -> dict[str, NDArray[np.int64]]:
    """Class indices by number of training images: many (> 100), medium (20 to 100), few (< 20).

    A group without classes is left out.
    """
    counts = np.asarray(class_counts)
    group = np.where(counts > MANY, 0, np.where(counts >= FEW, 1, 2))
    groups = {name: np.flatnonzero(group == k) for k, name in enumerate(SHOT_GROUPS)}
    return {name: classes for name, classes in groups.items() if classes.size}


def group_names(class_counts: ArrayLike) -> list[str]:
    """The shot group of each class, (K,)."""
    groups = shot_groups(class_counts)
    names = {k: name for name, classes in groups.items() for k in classes.tolist()}
    return [names[k] for k in range(len(names))]


def log_prior(class_counts: ArrayLike) -> NDArray[np.float64]:
    """Logarithm of each class's share of the training images, (K,).

    Raises:
        ValueError: A class has no training images, so its log prior would be minus infinity.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    empty = np.flatnonzero(counts <= 0)
    if empty.size:
        raise UserError(
            f"class_counts has {empty.size} classes without training images (first: {empty[0]}): "
            "they have no prior; remove them from the data set"
        )
    shares: NDArray[np.float64] = counts / counts.sum()
    return np.log(shares)
