"""The sample of images on which the geometry of the representation is measured.

It has the same ids at every epoch and for any number of workers, and about the same number of
images of each class, from at most 512 classes, so that its cost does not grow with K.

Axes: N images, n images of the sample, K classes, E embedding width, D feature width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bcl_ray.data.keyed import Stream, uniforms
from bcl_ray.method.collectives import gather_rows

MAX_CLASSES = 512  # their cosines are a dense matrix


class Sample(NamedTuple):
    """A sample, or one worker's part of it, as the network represents it."""

    ids: Tensor
    """Stable numbers of the images, (n,), int64."""
    labels: Tensor
    """Class of each image, (n,), int64 in [0, K)."""
    embeddings: Tensor
    """Outputs of the backbone, (n, E), float32."""
    features: Tensor
    """Unit-norm projections, (n, D), float32; (n, 0) without a contrastive loss."""


def sample_shares(
    split_counts: ArrayLike, class_counts: ArrayLike, images: int
) -> NDArray[np.float64]:
    """The share of each class's images that a sample takes, (K,), in [0, 1].

    Args:
        split_counts: Images of each class in the sampled split, (K,).
        class_counts: Training images of each class, (K,). Of more than 512 classes, the sample
            takes 512 that are evenly spaced in the order of size, and so in the shot groups.
        images: Expected number of images, at most; each class contributes the same number, or all
            its images if it has fewer.
    """
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    positions = np.linspace(0, len(order) - 1, min(len(order), MAX_CLASSES)).round().astype(int)
    classes = order[positions]
    counts = np.asarray(split_counts)[classes]
    shares = np.zeros(len(order))
    shares[classes] = np.minimum(1, images / len(classes) / np.maximum(counts, 1))
    return shares


def is_sampled(
    ids: NDArray[np.int64], labels: NDArray[np.int64], shares: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether each image belongs to the sample, (N,).

    Args:
        ids: Stable numbers of the images, (N,).
        labels: Class of each image, (N,), in [0, K).
        shares: Share of each class, (K,): `sample_shares`.

    Returns:
        Truth values that depend only on an image's own id and label.
    """
    sampled: NDArray[np.bool_] = _random_numbers(np.asarray(ids)) < shares[labels]
    return sampled


def gather_sample(parts: Sequence[Sample]) -> Sample:
    """The whole sample on the CPU, from the parts of all workers.

    Its order is random but depends on the ids alone, so that the first images are themselves a
    random sample.

    Args:
        parts: This worker's parts; at least one, which may be empty.
    """
    columns = [gather_rows(torch.cat(column)).cpu() for column in zip(*parts, strict=True)]
    order = torch.from_numpy(_random_numbers(columns[0].numpy()).argsort())
    return Sample(*(column[order] for column in columns))


def _random_numbers(ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each image, (N,), which depends on its id alone."""
    return uniforms(0, 0, ids, 0, 1, stream=Stream.SAMPLE)[:, 0]
