"""SGD: which parameters have weight decay, and the learning rate of each step."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD

from bcl_ray.experiment.options import OptimConfig
from bcl_ray.machine.errors import UserError


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The trainable parameters with their weight decay.

    Without optim.decay_norms_and_biases, parameters with fewer than two axes have none.
    """
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
    """SGD with momentum; the caller sets the learning rate before each step."""
    return SGD(parameter_groups(model, config), lr=config.lr, momentum=config.momentum)


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of a step.

    During the W steps of warm-up, it rises linearly from optim.lr / W in the first step to
    optim.lr in the last one. After them, optim.schedule decides:

    - step: optim.lr times optim.gamma for every milestone that has passed. Milestones are counted
      in epochs from the start of training.
    - cosine: optim.lr * (1 + cos(pi * p)) / 2, where p rises linearly from 0 at the first step
      after the warm-up to 1 at one step after the last.
    - cosine with optim.cosine_per_epoch: the same with p = (e + 1) / (E + 1) throughout epoch e of
      the E epochs after the warm-up, as in the authors' code. The rate starts a little below
      optim.lr and does not end at 0.

    Args:
        step: Number of steps before this one, in [0, steps_per_epoch * epochs).
        steps_per_epoch: At least 1.
        epochs: Value of train.epochs.
        config: Options of the schedule.

    Raises:
        ValueError: The run has no such step.
    """
    if not 0 <= step < steps_per_epoch * epochs:
        raise UserError(
            f"step ({step}) must be in [0, {steps_per_epoch * epochs}): "
            f"{epochs} epochs of {steps_per_epoch} steps"
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * SCHEDULES[config.schedule](step, steps_per_epoch, epochs, config)


def _step_decay(step: int, steps_per_epoch: int, _epochs: int, config: OptimConfig) -> float:
    passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
    return config.gamma**passed


def _cosine_decay(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.cosine_per_epoch:
        epoch = (step - warmup) // steps_per_epoch
        progress = (epoch + 1) / (epochs - config.warmup_epochs + 1)
    else:
        progress = (step - warmup) / (steps_per_epoch * epochs - warmup)
    return (1 + math.cos(math.pi * progress)) / 2


# The factor of optim.lr after the warm-up, by optim.schedule.
SCHEDULES: dict[str, Callable[[int, int, int, OptimConfig], float]] = {
    "step": _step_decay,
    "cosine": _cosine_decay,
}
