"""The losses that `loss.kind` selects, as a training step calls them.

A classification loss is called with (logits, labels, log_prior, config, num_images), a contrastive
one with (outputs, labels, keys, config). Both return this worker's share of the global batch's
loss. Losses from plugins have the same arguments.

Axes: N images of a worker, M images of all workers, V contrastive views, K classes, D feature
width.
"""

from typing import Any

import torch
from torch import Tensor

from bcl_ray.experiment.choices import LOSSES
from bcl_ray.experiment.options import LossConfig
from bcl_ray.experiment.table import code
from bcl_ray.method.collectives import gather_with_grad, rank, world_size
from bcl_ray.method.losses import (
    Keys,
    balanced_contrastive_loss,
    logit_adjusted_cross_entropy,
    supervised_contrastive_loss,
)
from bcl_ray.method.model import Outputs


def loss_share(
    outputs: Outputs, labels: Tensor, log_prior: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """This worker's share of a step's loss: a weighted classification and contrastive loss.

    Args:
        outputs: The network's outputs for this worker's images.
        labels: Class of each of these images, (N,), int64 in [0, K).
        log_prior: Log of each class's share of the training images, (K,).
        config: Selects the losses and their options.

    Returns:
        This worker's share of the global batch's loss, a scalar, and its shares of the terms named
        in `bcl_ray.method.learner.TERMS`, (3,), detached.
    """
    kind = LOSSES[config.kind]
    num_images = len(labels) * world_size()
    classification = code(kind.classification)(
        outputs.logits, labels, log_prior, config, num_images
    )
    contrastive = torch.zeros_like(classification)
    if config.is_contrastive and kind.contrastive is not None:
        # The images of all workers are compared with each other. Without the other workers' keys,
        # the batch would shrink to one worker's images, and no error would show it.
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
    return supervised_contrastive_loss(outputs.features, labels, **_options(keys, config))


def balanced_contrastive(
    outputs: Outputs, labels: Tensor, keys: Keys, config: LossConfig
) -> Tensor:
    """Balanced contrastive loss."""
    return balanced_contrastive_loss(
        outputs.features, outputs.prototypes, labels, **_options(keys, config)
    )


def _options(keys: Keys, config: LossConfig) -> dict[str, Any]:
    return {
        "temperature": config.temperature,
        "anchor_mean": config.anchor_mean,
        "keys": keys,
    }
