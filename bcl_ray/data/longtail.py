"""Long-tailed profiles: how many images, and which, each class keeps.

Axes: K classes, N images of the source. Classes are in label order, the first the largest.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bcl_ray.experiment.choices import Profile
from bcl_ray.experiment.metric_names import SHOT_GROUPS
from bcl_ray.machine.errors import UserError

MANY = 100  # more training images than this
FEW = 20  # fewer training images than this; both from Liu et al., CVPR 2019 (OLTR)


def class_counts_for(
    profile: Profile,
    available: ArrayLike,
    *,
    imbalance_factor: float | None,
    max_per_class: int | None,
) -> NDArray[np.int64]:
    """Training images per class under a profile.

    exponential: n_i = floor(n_max * imbalance_factor ** (-i / (K - 1))); step: n_max for the
    first half of the classes, floor(n_max / imbalance_factor) for the others; natural: all.

    Args:
        profile: shape of the tail.
        available: images that the source has of each class, (K,).
        imbalance_factor: n_max / n_min, at least 1; unused by natural.
        max_per_class: n_max, for natural a cap; None: the most that every class can follow.

    Returns:
        Counts, (K,), each at least 1 unless natural finds an empty class.

    Raises:
        ValueError: an option out of range, a class that would be empty, or a class that has
            fewer images than the profile asks for.

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.
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
    index = np.arange(have.size)
    if profile == "exponential":
        depth = index / max(have.size - 1, 1)
    elif profile == "step":
        depth = (index >= have.size // 2).astype(np.float64)
    else:
        raise UserError(f"profile '{profile}' must be exponential, step or natural")
    shares = (1 / imbalance_factor) ** depth
    wanted = _counts(largest, shares)
    if max_per_class is None:
        while (wanted > have).any() and wanted.min() > 0:
            largest -= 1
            wanted = _counts(largest, shares)
    _check_wanted(wanted, have, profile, imbalance_factor)
    return wanted


def _counts(largest: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    # The margin keeps 49 * (1 / 49) at 1: without it, rounding empties the last class.
    return np.floor(largest * shares + 1e-9).astype(np.int64)


def _check_wanted(
    wanted: NDArray[np.int64], have: NDArray[np.int64], profile: str, imbalance_factor: float
) -> None:
    if wanted.min() < 1:
        raise UserError(
            f"imbalance_factor ({imbalance_factor:g}) leaves class {int(wanted.argmin())} without "
            f"images: with {wanted.max()} in the largest class it can be at most {wanted.max()}"
        )
    short = np.flatnonzero(have < wanted)
    if short.size:
        first = int(short[0])
        raise UserError(
            f"profile '{profile}' asks for {wanted[first]} images of class {first}, and the source "
            f"has {have[first]} ({short.size} classes fall short): lower max_per_class or raise "
            "imbalance_factor"
        )


def kept_rows(
    labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
    *,
    seed: int,
    random_order: bool,
) -> NDArray[np.int64]:
    """Rows that a profile keeps, rising: the first of each class in a fixed order.

    So a smaller profile keeps a subset of a larger one's rows, for the same seed.

    Args:
        labels: class of each row, (N,); rows outside 0..K-1 are never kept.
        class_counts: rows to keep of each class, (K,), none above what there is.
        seed: of the order within each class.
        random_order: rows of a class already come in random order, which is then kept.
    """
    by_class = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[by_class], np.arange(len(class_counts) + 1))
    kept = []
    for label, count in enumerate(class_counts):
        rows = by_class[bounds[label] : bounds[label + 1]]
        if not random_order and count < len(rows):
            rows = np.random.default_rng([seed, label]).permutation(rows)
        kept.append(rows[:count])
    return np.sort(np.concatenate(kept))


def shot_groups(class_counts: ArrayLike) -> dict[str, NDArray[np.int64]]:
    """Class indices by number of training images: many (> 100), medium (20 to 100), few (< 20).

    A group without classes is left out.
    """
    counts = np.asarray(class_counts)
    group = np.where(counts > MANY, 0, np.where(counts >= FEW, 1, 2))
    groups = {name: np.flatnonzero(group == k) for k, name in enumerate(SHOT_GROUPS)}
    return {name: classes for name, classes in groups.items() if classes.size}


def log_prior(class_counts: ArrayLike) -> NDArray[np.float64]:
    """Logarithm of each class's share of the training images, (K,).

    Raises:
        ValueError: a class without training images, whose prior would be minus infinity.
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
