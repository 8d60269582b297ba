"""Geometry of the representation: how close classes are to the corners of a regular simplex.

All of it is measured on a fixed sample of images: the same ids at every epoch, whoever trains,
about equally many of each class, of at most 512 classes, so that K = 8142 costs no more than
512. Every class weighs the same whatever its number of images, and the centre is the unweighted
mean of class means. Axes: n images of the sample, C classes in it, K classes, D width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.views.keyed import uniforms
from bcl_ray.experiment.metric_names import SHOT_GROUPS
from bcl_ray.method.collectives import gather_rows

CLASSES = 512  # of a sample, at most: pairs of them are a dense matrix
PAIRED = 1024  # images whose pairs are all looked at, which costs their square; the rest is linear
STREAM = 7  # keeps the sample independent of crops and colours, which are keyed by ids as well
CUTOFF = 1e-5  # singular values below this share of the largest are rounding of float32
HEAD, TAIL = SHOT_GROUPS[0], SHOT_GROUPS[-1]


class Sample(NamedTuple):
    """Images of a sample, or a worker's part of it, by what the network makes of them."""

    ids: Tensor
    """(n,), int64."""
    labels: Tensor
    """(n,), int64 in [0, K)."""
    embeddings: Tensor
    """Of the backbone, (n, E), float32."""
    features: Tensor
    """Unit-norm projections, (n, D), float32; (n, 0) where nothing contrasts them."""


def sample_shares(
    split_counts: ArrayLike, class_counts: ArrayLike, images: int
) -> NDArray[np.float64]:
    """The share of each class's images that a sample takes, (K,), in [0, 1].

    Args:
        split_counts: images of each class in the sampled split, (K,).
        class_counts: training images by class, (K,). Of more than 512 classes, 512 are taken that
            lie evenly in the order of their size, and so in the shot groups.
        images: that the sample has at most, about; equally many of each class that has enough.
    """
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    places = np.linspace(0, len(order) - 1, min(len(order), CLASSES)).round().astype(int)
    taken = order[places]
    counts = np.asarray(split_counts)[taken]
    shares = np.zeros(len(order))
    shares[taken] = np.minimum(1, images / len(taken) / np.maximum(counts, 1))
    return shares


def is_sampled(
    ids: NDArray[np.int64], labels: NDArray[np.int64], shares: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which images belong to the sample, (N,): a function of each one's id and label alone."""
    chosen: NDArray[np.bool_] = _numbers(np.asarray(ids)) < shares[labels]
    return chosen


def whole_sample(parts: Sequence[Sample]) -> Sample:
    """The sample of all workers' parts, on the CPU, in an order that ids alone decide.

    It is a random one, so that the first images are a random part of the sample.

    Args:
        parts: this worker's; at least one, which may be empty.
    """
    joined = [gather_rows(torch.cat(column)).cpu() for column in zip(*parts, strict=True)]
    order = torch.from_numpy(_numbers(joined[0].numpy()).argsort())
    return Sample(*(column[order] for column in joined))


def geometry(
    vectors: Tensor, labels: Tensor, class_counts: ArrayLike, directions: Mapping[str, Tensor]
) -> dict[str, float]:
    """How the classes of a sample lie, by the name of the metric.

    Names of a shot group end in its name: `nc1` is over all classes, `nc1_few` over those with
    few training images. What is not defined is left out: angles where all class means coincide,
    a group without the classes that a metric needs.

    Args:
        vectors: embeddings or features, (n, D).
        labels: (n,), int64 in [0, K).
        class_counts: training images by class, (K,), which make the groups.
        directions: what should point to the class means, (K, D) each, by name: the classifier's
            rows, or prototypes.

    Returns:
        nc1, equinorm, equiangular, maximal_angle, head_head_cosine, head_tail_cosine,
        tail_tail_cosine, alignment, uniformity, and <name>_distance for each direction; their
        definitions are those of the functions below. On a simplex to which every image has
        collapsed all are 0 but the cosines, which are -1/(C - 1), and uniformity, which is as
        low as C points allow.
    """
    classes, index, counts = _classes(labels)
    groups = _groups(classes, class_counts)
    vectors = vectors.double()
    means = _class_means(vectors, index, counts)
    centred = means - means.mean(0)
    found = _spread(vectors, index, counts, groups)
    if len(classes) < 2 or _coincide(centred, vectors):
        return found
    within = vectors - means[index]
    found |= variability(within, centred, index, counts, groups)
    found |= angles(centred, groups)
    for name, rows in directions.items():
        found |= distances(f"{name}_distance", rows.double()[classes], centred, groups)
    return found


def class_means(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes of a sample, (C,), and the means of their vectors, (C, D)."""
    classes, index, counts = _classes(labels)
    return classes, _class_means(vectors.double(), index, counts)


def variability(
    within: Tensor, centred: Tensor, index: Tensor, counts: Tensor, groups: Mapping[str, Tensor]
) -> dict[str, float]:
    """nc1 = tr(S_W S_B^+) / C: within-class variability against that between classes.

    S_W is the mean over classes of their covariance, over n_k - 1, so that a class does not look
    collapsed because few of its images were sampled (a class with one is left out); S_B =
    sum_k m_k m_k^T / C of the centred means m_k. A group's value has its classes alone in S_W,
    and all in S_B.

    Args:
        within: vectors less the mean of their class, (n, D).
        centred: class means around their centre, (C, D).
        index: place of each vector's class in `centred`, (n,).
        counts: vectors of each class, (C,).
        groups: places of classes, by group.

    Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of deep
    learning training", PNAS 2020, NC1, with classes instead of images weighing the same.
    """
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = sizes > CUTOFF * sizes[0]
    # S_B^+ = V diag(C / s^2) V^T, so that its trace with w w^T is a sum over its axes.
    squares = ((within @ axes[kept].T) / sizes[kept]).square().sum(1) * len(centred)
    of_class = torch.zeros_like(counts, dtype=squares.dtype).index_add(0, index, squares)
    of_class = of_class / (counts - 1)  # infinite or NaN where there is one image
    return {
        _name("nc1", group): of_class[some].mean().item() / len(centred)
        for group, places in groups.items()
        if len(some := places[counts[places] > 1])
    }


def angles(centred: Tensor, groups: Mapping[str, Tensor]) -> dict[str, float]:
    """Equal norms and equal, maximal angles of class means around their centre (NC2).

    equinorm = std_k |m_k| / mean_k |m_k|; equiangular = std over pairs of cos(m_j, m_k);
    maximal_angle = mean over pairs of |cos(m_j, m_k) + 1/(C - 1)|, for a group over the pairs
    within it. head_head, head_tail and tail_tail cosines are means over pairs of classes with
    many and with few training images.

    Args:
        centred: class means around their centre, (C, D).
        groups: places of classes, by group.

    Papyan et al., PNAS 2020, NC2. Of a subset of a simplex's corners, around its own centre,
    the ideal is -1/(C - 1), too.
    """
    norms = centred.norm(dim=1)
    cosines = cosine_matrix(centred)
    ideal = -1 / (len(centred) - 1)
    every = _pairs(cosines, groups["all"])
    found = {
        "equinorm": (norms.std(correction=0) / norms.mean()).item(),
        "equiangular": every.std(correction=0).item(),
    }
    for group, places in groups.items():
        if len(places) > 1:
            distance = (_pairs(cosines, places) - ideal).abs().mean().item()
            found[_name("maximal_angle", group)] = distance
    for name, group in (("head_head", HEAD), ("tail_tail", TAIL)):
        if len(groups.get(group, ())) > 1:
            found[f"{name}_cosine"] = _pairs(cosines, groups[group]).mean().item()
    if HEAD in groups and TAIL in groups:
        block = cosines[groups[HEAD]][:, groups[TAIL]]
        found["head_tail_cosine"] = block.mean().item()
    return found


def distances(
    name: str, rows: Tensor, centred: Tensor, groups: Mapping[str, Tensor]
) -> dict[str, float]:
    """|W / |W| - M / |M||, Frobenius norms: 0 when rows and class means agree, at most 2 (NC3).

    Args:
        name: of the metric.
        rows: the classifier's rows or prototypes, (C, D).
        centred: class means around their centre, (C, D).
        groups: places of classes; a group's value has its rows alone in all three norms.

    Papyan et al., PNAS 2020, NC3.
    """
    found = {}
    for group, places in groups.items():
        pair = [matrix[places] / matrix[places].norm() for matrix in (rows, centred)]
        found[_name(name, group)] = (pair[0] - pair[1]).norm().item()
    return found


def cosine_matrix(centred: Tensor) -> Tensor:
    """Cosines of all pairs of class means around their centre, (C, C)."""
    unit = functional.normalize(centred, dim=1)
    return unit @ unit.T


def _spread(
    vectors: Tensor, index: Tensor, counts: Tensor, groups: Mapping[str, Tensor]
) -> dict[str, float]:
    """Alignment and uniformity of the vectors' directions.

    alignment: mean |x - y|^2 over pairs of images of a class, then over classes; uniformity: log
    of the mean of exp(-2 |x - y|^2) over all pairs of images, each class weighing the same; for a
    group over the pairs within it. Vectors are scaled to unit norm first. Uniformity is that of
    the first 1,024 images.

    Wang and Isola, "Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere", ICML 2020; alpha = 2, t = 2, as their code.
    """
    unit = functional.normalize(vectors, dim=1)
    several = counts > 1
    # The mean over pairs in closed form: |x|^2 - |mean|^2, without pairs of an image with itself.
    squares = unit.square().sum(1)
    of_class = torch.zeros_like(counts, dtype=squares.dtype).index_add(0, index, squares) / counts
    scatter = of_class - _class_means(unit, index, counts).square().sum(1)
    aligned = 2 * counts / (counts - 1) * scatter.clamp(min=0)
    found = {}
    for group, places in groups.items():
        if len(some := places[several[places]]):
            found[_name("alignment", group)] = aligned[some].mean().item()
    return found | _uniformity(unit, index, counts, groups)


def _uniformity(
    unit: Tensor, index: Tensor, counts: Tensor, groups: Mapping[str, Tensor]
) -> dict[str, float]:
    unit, index = unit[:PAIRED], index[:PAIRED]
    counts = index.bincount(minlength=len(counts)).clamp(min=1)
    weights = torch.zeros(len(unit), len(groups), dtype=unit.dtype)
    for column, places in enumerate(groups.values()):
        inside = torch.zeros(len(counts), dtype=torch.bool).index_fill(0, places, value=True)
        weights[:, column] = (inside / counts)[index]
    # |x - y|^2 = 2 - 2 xy; in float32, whose exponentials are three times as fast.
    kernel = (4 * ((unit @ unit.T).float() - 1)).exp().double()
    self_pairs = weights.square().sum(0)  # exp(0) each
    total = (weights * (kernel @ weights)).sum(0) - self_pairs
    pairs = weights.sum(0).square() - self_pairs
    return {
        _name("uniformity", group): math.log(total[column] / pairs[column])
        for column, group in enumerate(groups)
        if pairs[column] > 0 and (weights[:, column] > 0).sum() > 1
    }


def _numbers(ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each image, which ids alone decide, (N,)."""
    return uniforms(0, 0, ids, 0, 1, stream=STREAM)[:, 0]


def _groups(classes: Tensor, class_counts: ArrayLike) -> dict[str, Tensor]:
    """Places in `classes` of all of them, and of each shot group that is there."""
    here = np.asarray(class_counts)[classes.numpy()]
    groups = {name: torch.from_numpy(places) for name, places in shot_groups(here).items()}
    return {"all": torch.arange(len(classes)), **groups}


def _classes(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Classes that are there, (C,), each label's place in them, (n,), and their sizes, (C,)."""
    classes, index, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    return torch.from_numpy(classes), torch.from_numpy(index), torch.from_numpy(counts)


def _class_means(vectors: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    sums = vectors.new_zeros(len(counts), vectors.shape[1]).index_add(0, index, vectors)
    return sums / counts[:, None]


def _coincide(centred: Tensor, vectors: Tensor) -> bool:
    """Whether class means differ by no more than rounding."""
    scale = vectors.square().sum(1).mean().sqrt()
    return bool(centred.norm(dim=1).max() <= CUTOFF * scale)


def _pairs(cosines: Tensor, places: Tensor) -> Tensor:
    """Cosines of the pairs of different classes, each once."""
    block = cosines[places][:, places]
    above = torch.ones_like(block, dtype=torch.bool).triu(diagonal=1)
    return block[above]


def _name(metric: str, group: str) -> str:
    return metric if group == "all" else f"{metric}_{group}"
