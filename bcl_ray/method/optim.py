"""The optimiser: groups of parameters, and the learning rate of each step."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from bcl_ray.experiment.options import OptimConfig
from bcl_ray.machine.errors import UserError


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The trainable parameters, by their weight decay and factor of the learning rate.

    Without optim.decay_norms_and_biases, parameters with fewer than two axes have no weight decay,
    nor have those that a backbone of timm names, such as positions.
    """
    factors = _lr_factors(model, config)
    spared = _spared(model) if not config.decay_norms_and_biases else set()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (factor := factors.get(name, 1.0)):
            groups.setdefault((factor, name not in spared), []).append(parameter)
    return [
        {
            "params": groups[factor, decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_factor": factor,
        }
        for factor, decays in sorted(groups, reverse=True)
    ]


def _spared(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay."""
    backbone = getattr(model, "backbone", None)
    named_by_timm: set[str] = getattr(backbone, "no_weight_decay", set)()
    few_axes = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    return few_axes | {f"backbone.{name}" for name in named_by_timm}


def _lr_factors(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    """Factors of the learning rate by name, of all parameters whose factor is not 1."""
    if config.backbone_lr == 1 and config.layer_decay == 1:
        return {}
    backbone: Any = model.backbone
    layers = dict.fromkeys((name for name, _ in backbone.named_parameters()), 0)
    if config.layer_decay < 1:
        from timm.models import group_parameters  # noqa: PLC0415  an extra

        matcher = backbone.group_matcher(coarse=False)
        layers = group_parameters(backbone, matcher, reverse=True)
    last = max(layers.values(), default=0)
    return {
        f"backbone.{name}": config.backbone_lr * config.layer_decay ** (last - layer)
        for name, layer in layers.items()
    }


# By optim.kind.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimConfig], Optimizer]] = {
    "sgd": lambda groups, config: SGD(groups, lr=config.lr, momentum=config.momentum),
    "adamw": lambda groups, config: AdamW(groups, lr=config.lr),
}


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimiser that optim.kind selects; the caller sets the learning rates before each step.

    The learning rate of a group is that of `learning_rate` times the group's `lr_factor`.
    """
    return OPTIMIZERS[config.kind](parameter_groups(model, config), config)


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
