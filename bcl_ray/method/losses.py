"""Balanced contrastive, supervised contrastive and logit-adjusted losses over a global batch.

Shares add up: each worker passes its own anchors and everyone's keys, and gets its share of the
global batch's loss. The sum of the shares is the loss, and the sum of their gradients over
workers is its gradient. All is computed in float32 (float64 stays) whatever autocast says, and
no value is read on the host, so that a device never waits for it.

Axes: N local images, M images of all workers, V contrastive views, A = V * N anchors,
B = V * M keys, K classes, D feature width.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bcl_ray.method.precision import wide

AnchorMean = Literal["instance", "class"]


class Keys(NamedTuple):
    """What anchors are compared with: the contrastive views of all workers' images."""

    features: Tensor
    """(V, M, D), unit norm; gradient flows into them."""
    labels: Tensor
    """(M,), int64 in [0, K)."""
    offset: int
    """Position of the first local image among the M."""


def balanced_contrastive_loss(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    anchor_mean: AnchorMean = "instance",
    keys: Keys | None = None,
) -> Tensor:
    """Contrastive loss in which every class weighs the same among an anchor's keys.

    Each class enters the denominator as the mean over its keys and its prototype (class
    averaging), so that a class that the batch lacks is still there (class complement). Divisors
    are those of the authors' released code: n_y for the anchor's own class, without the anchor
    itself, and n_k + 1 for the others; the paper's text has n_k + 1 throughout.

    Args:
        features: unit-norm features of the local contrastive views, (V, N, D).
        prototypes: unit-norm, one per class, (K, D); the same on every worker.
        labels: class of each local image, (N,), int64 in [0, K).
        temperature: divides cosine similarities; unitless, > 0.
        anchor_mean: "instance" averages over anchors as published; "class" over the classes
            that the global batch holds, which makes the regular simplex the optimum for
            long-tailed batches too.
        keys: the global batch; None when these images are all of it.

    Returns:
        Scalar: this worker's share of the global batch's loss.

    Raises:
        ValueError: shapes that do not fit together, or an option out of range.

    Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022.
    """
    keys = _checked(features, labels, keys, temperature, anchor_mean)
    if prototypes.ndim != 2 or prototypes.shape[1] != features.shape[2]:
        raise ValueError(
            f"prototypes must have shape (K, {features.shape[2]}), got {tuple(prototypes.shape)}"
        )
    num_views, num_keys, _ = keys.features.shape
    with torch.autocast(features.device.type, enabled=False):
        anchors = wide(features).flatten(0, 1)  # (A, D)
        anchor_labels = labels.repeat(num_views)  # (A,)
        key_labels = keys.labels.repeat(num_views)  # (B,)
        # Not bincount: on a GPU it waits for the largest label.
        sizes = anchors.new_zeros(len(prototypes)).index_add_(
            0, key_labels, anchors.new_ones(num_views * num_keys)
        )  # (K,), n_k
        own_size = sizes[anchor_labels]  # (A,), n_y
        log_own, log_other = own_size.log(), (sizes + 1).log()

        similarity, same, is_self = _compare(anchors, anchor_labels, keys, temperature)  # (A, B)
        log_divisor = torch.where(same, log_own[:, None], log_other[key_labels])
        among_views = (similarity - log_divisor).masked_fill(is_self, -torch.inf).logsumexp(1)
        among_prototypes, to_own = _PrototypeBlock.apply(
            anchors, wide(prototypes), anchor_labels, log_own, log_other, temperature
        )
        positives = (similarity * (same & ~is_self)).sum(1) + to_own
        losses = torch.logaddexp(among_views, among_prototypes) - positives / own_size  # (A,)
        weights = _anchor_weights(own_size, (sizes > 0).sum(), len(key_labels), anchor_mean)
        return torch.dot(weights, losses)


def supervised_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    anchor_mean: AnchorMean = "instance",
    keys: Keys | None = None,
) -> Tensor:
    """Supervised contrastive loss: all other keys in the denominator, each weighing the same.

    Arguments, return value and errors as in `balanced_contrastive_loss`, without prototypes;
    V must be at least 2, so that every anchor has a positive.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (L_out).
    """
    keys = _checked(features, labels, keys, temperature, anchor_mean)
    num_views = len(features)
    if num_views < 2:
        raise ValueError(
            f"features must have V >= 2 contrastive views, got {num_views}: "
            "the only image of its class would have no positive"
        )
    with torch.autocast(features.device.type, enabled=False):
        anchors, anchor_labels = wide(features).flatten(0, 1), labels.repeat(num_views)
        similarity, same, is_self = _compare(anchors, anchor_labels, keys, temperature)  # (A, B)
        denominator = similarity.masked_fill(is_self, -torch.inf).logsumexp(1)
        own_size = same.sum(1).to(anchors.dtype)  # (A,), n_y
        positives = (similarity * (same & ~is_self)).sum(1) / (own_size - 1)
        images = (keys.labels[:, None] == keys.labels).sum(1)  # (M,), images of the same class
        num_present = images.to(anchors.dtype).reciprocal().sum()  # each class adds 1
        return (denominator - positives) @ _anchor_weights(
            own_size, num_present, same.shape[1], anchor_mean
        )


def logit_adjusted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    *,
    tau: float,
    num_images: int | None = None,
) -> Tensor:
    """Cross-entropy of logits + tau * log prior: at tau 1, the paper's logit compensation.

    For training only; predictions take the logits as they are.

    Args:
        logits: (N, K), before softmax.
        labels: (N,), int64 in [0, K).
        log_prior: log of each class's share of the training images, (K,).
        tau: strength; 0 is plain cross-entropy.
        num_images: images of the global batch; None when these are all of them.

    Returns:
        Scalar: this worker's share of the mean over the global batch.

    Raises:
        ValueError: shapes that do not fit together.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or log_prior.shape != logits.shape[1:]:
        raise ValueError(
            "logits, labels and log_prior must have shapes (N, K), (N,) and (K,), got "
            f"{tuple(logits.shape)}, {tuple(labels.shape)} and {tuple(log_prior.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        adjusted = wide(logits) + tau * wide(log_prior)
        total = functional.cross_entropy(adjusted, labels, reduction="sum")
        return total / (num_images or len(labels))


class _PrototypeBlock(torch.autograd.Function):
    """Log-sum-exp of anchors against prototypes, and each anchor's own similarity: (A,) both.

    Plain operations hold several K x A buffers at their peak. Here one goes from similarities to
    exponentials in place, and backward needs no other: softmax is that buffer times a factor per
    anchor, which the narrow side takes.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        anchors: Tensor,
        prototypes: Tensor,
        own: Tensor,
        log_own: Tensor,
        log_other: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        # Classes first: these three products are then a quarter faster on a CPU (measured).
        block = torch.addmm(-log_other[:, None], prototypes, anchors.T, alpha=1 / temperature)
        row = own[None]  # (1, A)
        to_own = block.gather(0, row) + log_other[row]
        block.scatter_(0, row, to_own - log_own)
        highest = block.amax(0)
        total = block.sub_(highest).exp_().sum(0)
        ctx.save_for_backward(anchors, prototypes, own, block, total)
        ctx.temperature = temperature
        return highest + total.log(), to_own[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, grad_own: Tensor) -> tuple[Tensor | None, ...]:
        anchors, prototypes, own, block, total = ctx.saved_tensors
        rows = (grad_sum / (total * ctx.temperature))[:, None]
        owns = (grad_own / ctx.temperature)[:, None]
        to_anchors = (block.T @ prototypes).mul_(rows).addcmul_(prototypes[own], owns)
        to_prototypes = (block @ (anchors * rows)).index_add_(0, own, anchors * owns)
        return to_anchors, to_prototypes, None, None, None, None


def _checked(
    features: Tensor, labels: Tensor, keys: Keys | None, temperature: float, anchor_mean: str
) -> Keys:
    """The keys to compare with, after checks that read shapes only, never values."""
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            f"features must have shape (V, N, D), none of them 0, got {tuple(features.shape)}"
        )
    num_views, num_images, width = features.shape
    if labels.shape != (num_images,):
        raise ValueError(f"labels must have shape ({num_images},), got {tuple(labels.shape)}")
    if not temperature > 0:
        raise ValueError(f"loss.temperature ({temperature}) must be > 0")
    if anchor_mean not in ("instance", "class"):
        raise ValueError(f"loss.anchor_mean '{anchor_mean}' must be 'instance' or 'class'")
    if keys is None:
        return Keys(features, labels, 0)
    num_keys = len(keys.labels)
    if keys.features.shape != (num_views, num_keys, width):
        raise ValueError(
            f"keys.features must have shape ({num_views}, {num_keys}, {width}) to go with "
            f"features and keys.labels, got {tuple(keys.features.shape)}"
        )
    if not 0 <= keys.offset <= num_keys - num_images:
        raise ValueError(
            f"keys.offset ({keys.offset}) must be in [0, {num_keys - num_images}]: "
            f"{num_images} local images lie among {num_keys}"
        )
    return keys


def _compare(
    anchors: Tensor, anchor_labels: Tensor, keys: Keys, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities over temperature, same class, and same view of the same image: (A, B) each."""
    num_views, num_keys, _ = keys.features.shape
    similarity = anchors @ wide(keys.features).flatten(0, 1).T / temperature
    same = anchor_labels[:, None] == keys.labels.repeat(num_views)
    position = torch.arange(num_views * num_keys, device=anchors.device)
    local = position.view(num_views, num_keys)[:, keys.offset :][:, : len(anchors) // num_views]
    return similarity, same, local.flatten()[:, None] == position


def _anchor_weights(
    own_size: Tensor, num_present: Tensor, num_keys: int, anchor_mean: AnchorMean
) -> Tensor:
    """Weight of each local anchor, (A,); they add up to 1 over the global batch."""
    if anchor_mean == "class":
        return 1 / (own_size * num_present)
    return torch.full_like(own_size, 1 / num_keys)
