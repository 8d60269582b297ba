"""SGD: what decays, and the learning rate as a function of the step alone."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD

from bcl_ray.experiment.options import OptimConfig
from bcl_ray.machine.errors import UserError


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters with their weight decay; norms and biases (fewer than 2 axes) may have none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.decay_norms_and_biases:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    return [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.ndim < 2],
            "weight_decay": 0.0,
        },
    ]


def make_optimizer(model: nn.Module, config: OptimConfig) -> SGD:
    """SGD with momentum, as published; the caller sets the learning rate before each step."""
    return SGD(parameter_groups(model, config), lr=config.lr, momentum=config.momentum)


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of a step.

    Warm-up rises by equal amounts per step: the first step has optim.lr / W, where W is the
    number of warm-up steps, and the last of them optim.lr. Then:

    - step: optim.gamma for every milestone that has begun, counted from the start of training.
    - cosine: half a cosine over the steps that warm-up leaves, from optim.lr at the first
      towards 0, which would be reached one step after the last.
    - cosine, per epoch: lr * (1 + cos(pi * (e + 1) / (E + 1))) / 2 in epoch e of the E that
      warm-up leaves, as in the authors' code: a little under optim.lr at first, not 0 at last.

    Args:
        step: steps taken before this one, in [0, steps_per_epoch * epochs).
        steps_per_epoch: at least 1.
        epochs: train.epochs.
        config: the schedule.

    Raises:
        ValueError: a step outside the run.
    """
    if not 0 <= step < steps_per_epoch * epochs:
        raise UserError(
            f"step ({step}) must be in [0, {steps_per_epoch * epochs}): "
            f"{epochs} epochs of {steps_per_epoch} steps"
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "step":
        begun = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return config.lr * config.gamma**begun
    if config.cosine_per_epoch:
        epoch = (step - warmup) // steps_per_epoch
        progress = (epoch + 1) / (epochs - config.warmup_epochs + 1)
    else:
        progress = (step - warmup) / (steps_per_epoch * epochs - warmup)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2
