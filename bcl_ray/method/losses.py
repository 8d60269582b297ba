"""Balanced contrastive, supervised contrastive and logit-adjusted losses over a global batch.

Each worker passes its own images as anchors and the images of all workers as keys, and gets its
share of the global batch's loss. Summed over workers, the shares are the loss, and their gradients
are its gradient. Everything is computed in float32 (in float64 for inputs of that dtype), also
under autocast. No function reads a tensor's values on the host, so the host never waits for a
GPU.

Axes: N local images, M images of all workers, V contrastive views, A = V * N anchors,
B = V * M keys, K classes, D feature width.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bcl_ray.method.precision import at_least_float32
from bcl_ray.method.prototype_terms import prototype_terms

AnchorMean = Literal["instance", "class"]


class Keys(NamedTuple):
    """The contrastive views of all workers' images, which anchors are compared with."""

    features: Tensor
    """Unit-norm features, (V, M, D); gradients flow into them."""
    labels: Tensor
    """Class of each image, (M,), int64 in [0, K)."""
    offset: int
    """Position of the first local image among the M."""


class _Comparison(NamedTuple):
    """Every anchor against every key; (A, B) each."""

    similarity: Tensor
    """Cosine similarity divided by the temperature."""
    same_class: Tensor
    is_self: Tensor
    """Whether the key is the anchor itself."""

    def logsumexp_others(self, scores: Tensor) -> Tensor:
        """Log of the sum of exp(scores), (A, B), over an anchor's other keys, (A,)."""
        return scores.masked_fill(self.is_self, -torch.inf).logsumexp(1)

    def positive_sum(self) -> Tensor:
        """Sum of an anchor's similarities to the other keys of its class, (A,)."""
        return (self.similarity * (self.same_class & ~self.is_self)).sum(1)


def balanced_contrastive_loss(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    anchor_mean: AnchorMean = "instance",
    keys: Keys | None = None,
) -> Tensor:
    """Supervised contrastive loss in which every class has the same weight in the denominator.

    Class averaging: each class enters the denominator as the mean over its keys and its
    prototype. Class complement: because of its prototype, a class is in the denominator even if
    the batch has no image of that class. Let n_k be the number of keys of class k. The divisors of
    the means are those of the authors' code: n_y for the anchor's own class y, which has n_y - 1
    keys besides the anchor itself, and a prototype; and n_k + 1 for every other class k. The
    paper's text divides by n_k + 1 for all classes.

    Args:
        features: Unit-norm features of the local contrastive views, (V, N, D).
        prototypes: Unit-norm class prototypes, (K, D); the same on every worker.
        labels: Class of each local image, (N,), int64 in [0, K).
        temperature: Divides cosine similarities; unitless, > 0.
        anchor_mean: "instance" gives every anchor the same weight, as the authors' code does.
            "class" gives every class in the global batch the same weight, which makes the regular
            simplex the optimum for long-tailed batches too.
        keys: The global batch; None if the local images are all of it.

    Returns:
        This worker's share of the global batch's loss, a scalar.

    Raises:
        ValueError: Shapes do not match, or an option is out of range.

    Source: Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition",
    CVPR 2022, https://arxiv.org/abs/2207.09052.
    """
    keys = _check_inputs(features, labels, keys, temperature, anchor_mean)
    if prototypes.ndim != 2 or prototypes.shape[1] != features.shape[2]:
        raise ValueError(
            f"prototypes must have shape (K, {features.shape[2]}), got {tuple(prototypes.shape)}"
        )
    num_views, num_key_images, _ = keys.features.shape
    with torch.autocast(features.device.type, enabled=False):
        anchors = at_least_float32(features).flatten(0, 1)  # (A, D)
        anchor_labels = labels.repeat(num_views)  # (A,)
        key_labels = keys.labels.repeat(num_views)  # (B,)
        # Not bincount, which makes the host wait for a GPU to find the largest label.
        class_sizes = anchors.new_zeros(len(prototypes)).index_add_(
            0, key_labels, anchors.new_ones(num_views * num_key_images)
        )  # (K,), n_k
        own_size = class_sizes[anchor_labels]  # (A,), n_y
        log_own, log_other = own_size.log(), (class_sizes + 1).log()

        compared = _compare(anchors, anchor_labels, keys, temperature)
        log_divisor = torch.where(compared.same_class, log_own[:, None], log_other[key_labels])
        prototype_denominator, own_prototype = prototype_terms(
            anchors, prototypes, anchor_labels, log_own, log_other, temperature=temperature
        )
        key_denominator = compared.logsumexp_others(compared.similarity - log_divisor)
        log_denominator = torch.logaddexp(key_denominator, prototype_denominator)
        losses = log_denominator - (compared.positive_sum() + own_prototype) / own_size  # (A,)
        num_present = (class_sizes > 0).sum()
        weights = ANCHOR_WEIGHTS[anchor_mean](own_size, num_present, len(key_labels))
        return torch.dot(weights, losses)


def supervised_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    anchor_mean: AnchorMean = "instance",
    keys: Keys | None = None,
) -> Tensor:
    """Supervised contrastive loss: every other key has the same weight in the denominator.

    Args:
        features: Unit-norm features of the local contrastive views, (V, N, D). V must be at least
            2, so that every anchor has a positive.
        labels: Class of each local image, (N,), int64 in [0, K).
        temperature: Divides cosine similarities; unitless, > 0.
        anchor_mean: Weights of the anchors, as in `balanced_contrastive_loss`.
        keys: The global batch; None if the local images are all of it.

    Returns:
        This worker's share of the global batch's loss, a scalar.

    Raises:
        ValueError: Shapes do not match, or an option is out of range.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (L_out),
    https://arxiv.org/abs/2004.11362.
    """
    keys = _check_inputs(features, labels, keys, temperature, anchor_mean)
    num_views = len(features)
    if num_views < 2:
        raise ValueError(
            f"features must have V >= 2 contrastive views, got {num_views}: "
            "the only image of its class would have no positive"
        )
    with torch.autocast(features.device.type, enabled=False):
        anchors = at_least_float32(features).flatten(0, 1)  # (A, D)
        compared = _compare(anchors, labels.repeat(num_views), keys, temperature)
        own_size = compared.same_class.sum(1).to(anchors.dtype)  # (A,), n_y
        log_denominator = compared.logsumexp_others(compared.similarity)
        losses = log_denominator - compared.positive_sum() / (own_size - 1)  # (A,)
        images_of_own_class = (keys.labels[:, None] == keys.labels).sum(1)  # (M,)
        # Each image adds 1 / (number of images of its class), so each class adds exactly 1.
        num_present = images_of_own_class.to(anchors.dtype).reciprocal().sum()
        num_keys = num_views * len(keys.labels)
        return losses @ ANCHOR_WEIGHTS[anchor_mean](own_size, num_present, num_keys)


def logit_adjusted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    *,
    tau: float,
    num_images: int | None = None,
) -> Tensor:
    """Cross-entropy of logits + tau * log_prior.

    With tau = 1 it is the logit compensation of the BCL paper. It is for training only:
    predictions use the logits without the prior.

    Args:
        logits: Logits before softmax, (N, K).
        labels: Class of each local image, (N,), int64 in [0, K).
        log_prior: Log of each class's share of the training images, (K,).
        tau: Strength of the adjustment; 0 is plain cross-entropy.
        num_images: Number of images in the global batch; None if the local images are all of it.

    Returns:
        This worker's share of the mean over the global batch, a scalar.

    Raises:
        ValueError: Shapes do not match.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10,
    https://arxiv.org/abs/2007.07314.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or log_prior.shape != logits.shape[1:]:
        raise ValueError(
            "logits, labels and log_prior must have shapes (N, K), (N,) and (K,), got "
            f"{tuple(logits.shape)}, {tuple(labels.shape)} and {tuple(log_prior.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        adjusted = at_least_float32(logits) + tau * at_least_float32(log_prior)
        total = functional.cross_entropy(adjusted, labels, reduction="sum")
        return total / (num_images or len(labels))


def _check_inputs(
    features: Tensor, labels: Tensor, keys: Keys | None, temperature: float, anchor_mean: str
) -> Keys:
    """Check shapes and options, never values; return the keys to compare with."""
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            "features must have shape (V, N, D) without an axis of length 0, got "
            f"{tuple(features.shape)}"
        )
    num_views, num_images, width = features.shape
    if labels.shape != (num_images,):
        raise ValueError(f"labels must have shape ({num_images},), got {tuple(labels.shape)}")
    if not temperature > 0:
        raise ValueError(f"loss.temperature ({temperature}) must be > 0")
    if anchor_mean not in ANCHOR_WEIGHTS:
        choices = " or ".join(f"'{name}'" for name in ANCHOR_WEIGHTS)
        raise ValueError(f"loss.anchor_mean '{anchor_mean}' must be {choices}")
    if keys is None:
        return Keys(features, labels, 0)
    num_key_images = len(keys.labels)
    if keys.features.shape != (num_views, num_key_images, width):
        raise ValueError(
            f"keys.features must have shape ({num_views}, {num_key_images}, {width}) to match "
            f"features and keys.labels, got {tuple(keys.features.shape)}"
        )
    if not 0 <= keys.offset <= num_key_images - num_images:
        raise ValueError(
            f"keys.offset ({keys.offset}) must be in [0, {num_key_images - num_images}]: the "
            f"{num_images} local images are part of the {num_key_images} images of keys"
        )
    return keys


def _compare(anchors: Tensor, anchor_labels: Tensor, keys: Keys, temperature: float) -> _Comparison:
    num_views, num_key_images, _ = keys.features.shape
    similarity = anchors @ at_least_float32(keys.features).flatten(0, 1).T / temperature
    same_class = anchor_labels[:, None] == keys.labels.repeat(num_views)
    # Anchors are keys too; find the position of each anchor among the keys.
    positions = torch.arange(num_views * num_key_images, device=anchors.device)  # (B,)
    num_images = len(anchors) // num_views
    by_view = positions.view(num_views, num_key_images)
    own_positions = by_view[:, keys.offset :][:, :num_images].flatten()  # (A,)
    return _Comparison(similarity, same_class, own_positions[:, None] == positions)


# Functions that give the weight of each local anchor, (A,). Their arguments: for each anchor the
# number of keys of its class, (A,); the number of classes in the global batch; and the number of
# keys. The weights of all workers' anchors sum to 1.
ANCHOR_WEIGHTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "instance": lambda own_size, _, num_keys: torch.full_like(own_size, 1 / num_keys),
    "class": lambda own_size, num_present, _: 1 / (own_size * num_present),
}
