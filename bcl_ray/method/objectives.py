"""What `loss.kind` stands for: losses as a training step calls them, with options of LossConfig.

A classification loss is called with (logits, labels, log_prior, config, num_images), a contrastive
one with (outputs, labels, keys, config); both return this worker's share of the global batch's
loss. A loss of one's own has the same arguments.

Axes: N images of a worker, M images of all workers, V contrastive views, K classes, D features.
"""

from typing import Any

import torch
from torch import Tensor

from bcl_ray.experiment.choices import LOSSES, code
from bcl_ray.experiment.options import LossConfig
from bcl_ray.method.collectives import gather_with_grad, rank, world_size
from bcl_ray.method.losses import (
    Keys,
    balanced_contrastive_loss,
    logit_adjusted_cross_entropy,
    supervised_contrastive_loss,
)
from bcl_ray.method.model import Outputs


def global_loss(
    outputs: Outputs, labels: Tensor, log_prior: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """The loss of a step.

    Args:
        outputs: of this worker's images.
        labels: class of each of them, (N,).
        log_prior: log of each class's share of the training images, (K,).
        config: which losses, and their options.

    Returns:
        This worker's share of the global batch's loss, and the same of its TERMS, (3,), detached.
    """
    kind = LOSSES[config.kind]
    num_images = len(labels) * world_size()
    classification = code(kind.classification)(
        outputs.logits, labels, log_prior, config, num_images
    )
    contrastive = torch.zeros_like(classification)
    if config.is_contrastive and kind.contrastive is not None:
        # Every image is compared with every other: plain data parallelism would silently shrink
        # the batch to one worker's share.
        keys = Keys(
            gather_with_grad(outputs.features, 1), gather_with_grad(labels, 0), rank() * len(labels)
        )
        contrastive = code(kind.contrastive)(outputs, labels, keys, config)
    total = config.classification_weight * classification
    total = total + config.contrastive_weight * contrastive
    return total, torch.stack([total, classification, contrastive]).detach()


def cross_entropy(
    logits: Tensor, labels: Tensor, log_prior: Tensor, _config: LossConfig, num_images: int
) -> Tensor:
    """Plain cross-entropy."""
    return logit_adjusted_cross_entropy(logits, labels, log_prior, tau=0, num_images=num_images)


def logit_adjusted(
    logits: Tensor, labels: Tensor, log_prior: Tensor, config: LossConfig, num_images: int
) -> Tensor:
    """Logit-adjusted cross-entropy."""
    return logit_adjusted_cross_entropy(
        logits, labels, log_prior, tau=config.tau, num_images=num_images
    )


def supervised_contrastive(
    outputs: Outputs, labels: Tensor, keys: Keys, config: LossConfig
) -> Tensor:
    """Supervised contrastive loss."""
    return supervised_contrastive_loss(outputs.features, labels, **_compared(keys, config))


def balanced_contrastive(
    outputs: Outputs, labels: Tensor, keys: Keys, config: LossConfig
) -> Tensor:
    """Balanced contrastive loss."""
    return balanced_contrastive_loss(
        outputs.features, outputs.prototypes, labels, **_compared(keys, config)
    )


def _compared(keys: Keys, config: LossConfig) -> dict[str, Any]:
    return {
        "temperature": config.temperature,
        "anchor_mean": config.anchor_mean,
        "keys": keys,
    }
