"""Geometry of a representation: how close class means are to the corners of a regular simplex.

Every class has the same weight, whatever its number of images, and the centre is the unweighted
mean of the class means. "Head" classes have many training images, "tail" classes few.

Axes: n images of the sample, C classes in the sample, K classes, D width of the vectors.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from bcl_ray.data.longtail import shot_groups
from bcl_ray.experiment.metric_names import SHOT_GROUPS

UNIFORMITY_IMAGES = 1024  # at most, because all pairs are compared; other metrics: linear in n
ROUNDING = 1e-5  # singular values below this share of the largest are rounding errors of float32
HEAD, TAIL = SHOT_GROUPS[0], SHOT_GROUPS[-1]

Groups = Mapping[str, Tensor]  # positions in [0, C) of each shot group's classes, and of "all"


def geometry(
    vectors: Tensor, labels: Tensor, class_counts: ArrayLike, directions: Mapping[str, Tensor]
) -> dict[str, float]:
    """All metrics of a sample, by name.

    A metric whose name ends in a shot group is over its classes, any other one over all classes:
    `nc1_few` and `nc1`. A metric that is not defined is left out: with one class, or if all class
    means coincide, there are only alignment and uniformity; and a group may have too few classes
    or images for a metric.

    Args:
        vectors: Embeddings or features, (n, D).
        labels: Class of each image, (n,), int64 in [0, K).
        class_counts: Training images of each class, (K,), which determine the shot groups.
        directions: By name, vectors that should point to the class means, (K, D) each: the
            classifier's weights, or the prototypes.

    Returns:
        nc1, equinorm, equiangular, maximal_angle, head_head_cosine, head_tail_cosine,
        tail_tail_cosine, alignment, uniformity, and <name>_distance for each direction, as the
        functions below define them. If every image is at its class's corner of a regular simplex,
        the cosines are -1 / (C - 1), uniformity is minimal, and everything else is 0.
    """
    classes, index, counts = _count_classes(labels)
    groups = _group_positions(classes, class_counts)
    vectors = vectors.double()
    means = _class_means(vectors, index, counts)
    centred = means - means.mean(0)
    metrics = _alignment(vectors, index, counts, groups)
    metrics |= _uniformity(vectors, index, counts, groups)
    if len(classes) < 2 or _coincide(centred, vectors):
        return metrics
    metrics |= variability(vectors - means[index], centred, index, counts, groups)
    metrics |= angles(centred, groups)
    for name, rows in directions.items():
        metrics |= distances(f"{name}_distance", rows.double()[classes], centred, groups)
    return metrics


def class_means(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes of a sample, (C,), and the means of their vectors, (C, D), in float64.

    Args:
        vectors: Embeddings or features, (n, D).
        labels: Class of each image, (n,), int64.
    """
    classes, index, counts = _count_classes(labels)
    return classes, _class_means(vectors.double(), index, counts)


def variability(
    within: Tensor, centred: Tensor, index: Tensor, counts: Tensor, groups: Groups
) -> dict[str, float]:
    """Variability within classes relative to that between classes: nc1 = tr(S_W S_B^+) / C.

    S_W is the mean of the classes' covariances with divisor n_k - 1, so that a small sample of a
    class does not look collapsed; classes with one image are left out. S_B is
    sum_k m_k m_k^T / C for the centred class means m_k. The value of a group takes S_W from its
    own classes and S_B from all.

    Args:
        within: Vectors minus the mean of their class, (n, D).
        centred: Class means minus their centre, (C, D).
        index: Position of each vector's class in `centred`, (n,).
        counts: Vectors of each class, (C,).
        groups: Positions of the classes of each group.

    Source: NC1 of Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase
    of deep learning training", PNAS 2020, https://arxiv.org/abs/2008.08186; there all images have
    the same weight, here all classes.
    """
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    used = singular > ROUNDING * singular[0]
    # S_B^+ = V diag(C / s^2) V^T, so the trace of its product with w w^T is a sum over its axes.
    squares = ((within @ axes[used].T) / singular[used]).square().sum(1) * len(centred)
    class_sums = torch.zeros_like(counts, dtype=squares.dtype).index_add(0, index, squares)
    traces = class_sums / (counts - 1)  # infinite or NaN for classes with one image
    return {
        _name("nc1", group): traces[several].mean().item() / len(centred)
        for group, positions in groups.items()
        if len(several := positions[counts[positions] > 1])
    }


def angles(centred: Tensor, groups: Groups) -> dict[str, float]:
    """Whether class means have equal norms and equal, maximal angles (NC2).

    For the centred class means m_k:

    - equinorm = std_k |m_k| / mean_k |m_k|
    - equiangular = std of cos(m_j, m_k) over all pairs of classes
    - maximal_angle = mean of |cos(m_j, m_k) + 1 / (C - 1)| over pairs; also for the pairs within a
      group, whose ideal cosine is the same
    - head_head_cosine, head_tail_cosine, tail_tail_cosine = mean of cos(m_j, m_k) over pairs of
      head and tail classes

    Args:
        centred: Class means minus their centre, (C, D).
        groups: Positions of the classes of each group.

    Source: NC2 of Papyan et al., PNAS 2020, https://arxiv.org/abs/2008.08186.
    """
    norms = centred.norm(dim=1)
    unit = functional.normalize(centred, dim=1)
    cosines = unit @ unit.T  # (C, C)
    ideal = -1 / (len(centred) - 1)
    metrics = {
        "equinorm": (norms.std(correction=0) / norms.mean()).item(),
        "equiangular": _pairs(cosines, groups["all"]).std(correction=0).item(),
    }
    for group, positions in groups.items():
        if len(positions) > 1:
            deviation = (_pairs(cosines, positions) - ideal).abs().mean().item()
            metrics[_name("maximal_angle", group)] = deviation
    for name, group in (("head_head_cosine", HEAD), ("tail_tail_cosine", TAIL)):
        if len(groups.get(group, ())) > 1:
            metrics[name] = _pairs(cosines, groups[group]).mean().item()
    if HEAD in groups and TAIL in groups:
        metrics["head_tail_cosine"] = cosines[groups[HEAD]][:, groups[TAIL]].mean().item()
    return metrics


def distances(name: str, rows: Tensor, centred: Tensor, groups: Groups) -> dict[str, float]:
    """Distance between two normalised matrices: | W / |W| - M / |M| |, in [0, 2] (NC3).

    The norms are Frobenius norms. The distance is 0 if the rows of W point to the class means and
    have lengths in the same proportions.

    Args:
        name: Name of the metric.
        rows: W, the classifier's weights or the prototypes, (C, D).
        centred: M, class means minus their centre, (C, D).
        groups: Positions of the classes of each group; the value of a group uses only its rows of
            both matrices.

    Source: NC3 of Papyan et al., PNAS 2020, https://arxiv.org/abs/2008.08186.
    """
    metrics = {}
    for group, positions in groups.items():
        pair = [matrix[positions] / matrix[positions].norm() for matrix in (rows, centred)]
        metrics[_name(name, group)] = (pair[0] - pair[1]).norm().item()
    return metrics


def _alignment(vectors: Tensor, index: Tensor, counts: Tensor, groups: Groups) -> dict[str, float]:
    """Mean of |x - y|^2 over pairs of images of a class, then over classes, for unit vectors.

    Source: Wang and Isola, "Understanding contrastive representation learning through alignment
    and uniformity on the hypersphere", ICML 2020, https://arxiv.org/abs/2005.10242; alpha = 2 as
    in their code.
    """
    unit = functional.normalize(vectors, dim=1)
    # In closed form from mean |x|^2 - |mean x|^2, corrected for pairs of an image with itself.
    squares = unit.square().sum(1)
    sums = torch.zeros_like(counts, dtype=squares.dtype).index_add(0, index, squares)
    scatter = sums / counts - _class_means(unit, index, counts).square().sum(1)
    alignment = 2 * counts / (counts - 1) * scatter.clamp(min=0)
    return {
        _name("alignment", group): alignment[several].mean().item()
        for group, positions in groups.items()
        if len(several := positions[counts[positions] > 1])
    }


def _uniformity(vectors: Tensor, index: Tensor, counts: Tensor, groups: Groups) -> dict[str, float]:
    """Log of the mean of exp(-2 |x - y|^2) over pairs of images, for unit vectors.

    Every class has the same weight, and a group's value is over the pairs within it. Only the
    first 1,024 images are used. Source: Wang and Isola, ICML 2020; t = 2 as in their code.
    """
    unit = functional.normalize(vectors, dim=1)[:UNIFORMITY_IMAGES]
    index = index[:UNIFORMITY_IMAGES]
    counts = index.bincount(minlength=len(counts)).clamp(min=1)
    weights = torch.zeros(len(unit), len(groups), dtype=unit.dtype)
    for column, positions in enumerate(groups.values()):
        inside = torch.zeros(len(counts), dtype=torch.bool).index_fill(0, positions, value=True)
        weights[:, column] = (inside / counts)[index]
    # |x - y|^2 = 2 - 2 x.y; in float32, whose exponentials are three times as fast.
    kernel = (4 * ((unit @ unit.T).float() - 1)).exp().double()
    self_pairs = weights.square().sum(0)  # an image and itself have exp(0) = 1
    total = (weights * (kernel @ weights)).sum(0) - self_pairs
    pairs = weights.sum(0).square() - self_pairs
    return {
        _name("uniformity", group): math.log(total[column] / pairs[column])
        for column, group in enumerate(groups)
        if pairs[column] > 0 and (weights[:, column] > 0).sum() > 1
    }


def _group_positions(classes: Tensor, class_counts: ArrayLike) -> Groups:
    """Positions in `classes` of all its classes, and of those of each shot group in it."""
    sampled_counts = np.asarray(class_counts)[classes.numpy()]
    groups = {
        name: torch.from_numpy(positions) for name, positions in shot_groups(sampled_counts).items()
    }
    return {"all": torch.arange(len(classes)), **groups}


def _count_classes(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes that occur, (C,), each label's position in them, (n,), and their sizes, (C,)."""
    classes, index, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    return torch.from_numpy(classes), torch.from_numpy(index), torch.from_numpy(counts)


def _class_means(vectors: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    sums = vectors.new_zeros(len(counts), vectors.shape[1]).index_add(0, index, vectors)
    return sums / counts[:, None]


def _coincide(centred: Tensor, vectors: Tensor) -> bool:
    """Whether class means differ by no more than rounding."""
    scale = vectors.square().sum(1).mean().sqrt()
    return bool(centred.norm(dim=1).max() <= ROUNDING * scale)


def _pairs(cosines: Tensor, positions: Tensor) -> Tensor:
    """Cosines of the pairs of different classes, each pair once."""
    block = cosines[positions][:, positions]
    return block[torch.ones_like(block, dtype=torch.bool).triu(diagonal=1)]


def _name(metric: str, group: str) -> str:
    return metric if group == "all" else f"{metric}_{group}"
