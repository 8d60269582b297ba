"""The training state of one worker: network, optimiser, moving average and progress."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcl_ray.data.longtail import log_prior
from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import GradientSum, broadcast_initial_state, rank
from bcl_ray.method.model import TwoBranch
from bcl_ray.method.optim import learning_rate, make_optimizer
from bcl_ray.method.precision import set_up_precision
from bcl_ray.method.pretrained import load_backbone
from bcl_ray.runs.checkpoint import State

TERMS = ("loss/total", "loss/classification", "loss/contrastive")


class NonFiniteLossError(ArithmeticError):
    """The loss or a weight is infinite or NaN; raised on all workers at the same step."""


class Learner:
    """The network that a worker trains, and everything that changes with it.

    Args:
        experiment: The options. train.seed determines the initial weights, and model.weights
            replaces those of the backbone.
        class_counts: Training images of each class, (K,).
        steps_per_epoch: Steps per epoch of the epoch plan.
        device: Where to train.

    Raises:
        ValueError: model.weights does not fit the backbone.
        OSError: model.weights cannot be read.
    """

    def __init__(
        self,
        experiment: Experiment,
        class_counts: np.ndarray,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(experiment.train.seed)
        self.experiment = experiment
        self.steps_per_epoch = steps_per_epoch
        self.device = device
        self.model = TwoBranch(experiment.model, len(class_counts))
        self.note: str | None = None
        """What of model.weights was left out, as a note for the user; None if nothing was."""
        if experiment.model.weights is not None:
            self.note = load_backbone(self.model, experiment.model)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, experiment.optim)
        self.backbone_weights = [p for p in self.model.backbone.parameters() if p.requires_grad]
        broadcast_initial_state(self.model)
        self.average = copy.deepcopy(self.model) if experiment.train.ema_decay > 0 else None
        self.gradients = GradientSum(self.model)
        if experiment.train.compile:
            self.model.compile_stages()
        self.log_prior = torch.from_numpy(log_prior(class_counts)).float().to(device)
        self.sender = Sender(device, experiment.views, experiment.train.seed)
        self.autocast = set_up_precision(experiment.train.precision, device)
        self.step = 0
        # TERMS summed over the steps of the current epoch.
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)

    def begin_epoch(self, epoch: int) -> None:
        """Put the network in training mode, but a frozen backbone in evaluation mode, untrained."""
        frozen = self.experiment.optim.freezes_backbone(epoch)
        self.model.train()
        if frozen:
            self.model.backbone.eval()
        for weight in self.backbone_weights:
            weight.requires_grad_(not frozen)

    def seed_step(self) -> None:
        """Seed torch for a step whose network draws random numbers, on any device."""
        if self.experiment.model.drop_path:
            entropy = (self.experiment.train.seed, self.step, rank())
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step of the run, without the factors of groups of parameters."""
        train, optim = self.experiment.train, self.experiment.optim
        return learning_rate(step, self.steps_per_epoch, train.epochs, optim)

    def clip_gradients(self) -> None:
        """Scale the global batch's gradient to optim.clip_norm, if it is longer."""
        if (limit := self.experiment.optim.clip_norm) is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def state(self, **run_fields: Any) -> State:
        """Everything that a resumed run needs.

        Its tensors are the learner's own: save them before the next step changes them.

        Args:
            run_fields: The fields of State that describe the run and not the learner. Torch's
                random state is not among them: State takes it from torch.
        """
        return State(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            sums=self.sums,
            experiment=self.experiment.to_yaml(),
            **run_fields,
        )

    def restore(self, state: State) -> None:
        """Continue from a saved state; the run that saved it may have had any number of workers."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        self.step = state.step
        self.sums.copy_(state.sums)
        torch.set_rng_state(state.random_state)

    def check(self) -> None:
        """Check, before a state is saved, that the loss and all weights are finite.

        The loss alone is not enough, because it was computed before its step changed the weights.
        Waits for the device. All workers have to call it, not only the one that saves: all then
        raise the error or none does, and no worker goes on alone.

        Raises:
            NonFiniteLossError: A value is not finite; the message names the step.
        """
        tensors = [self.sums, *_float_tensors(self.model)]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise non_finite_error(self.step, "the loss or a weight is")

    @torch.no_grad()
    def move_average(self) -> None:
        """Update the moving average of the weights after a step, if train.ema_decay asks for it."""
        if self.average is not None:
            # Not torch's AveragedModel, which copies its counter to the device at every step. The
            # warm-up of the decay is that of TensorFlow's ExponentialMovingAverage.
            decay = min(self.experiment.train.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(
                _float_tensors(self.average), _float_tensors(self.model), 1 - decay
            )

    @property
    def evaluation_model(self) -> TwoBranch:
        """The network to evaluate and export: the moving average if there is one."""
        return self.model if self.average is None else self.average


def _float_tensors(model: nn.Module) -> list[Tensor]:
    """Weights and running statistics, without the counters of batch norm, which are not used."""
    tensors = (*model.parameters(), *model.buffers())
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def non_finite_error(step: int, subject: str) -> NonFiniteLossError:
    """The error of a step, with what to do about it.

    Args:
        step: Number of the step.
        subject: What is not finite, with its verb: "the loss is".
    """
    return NonFiniteLossError(
        f"step {step}: {subject} not finite; checkpoints from before it are kept: begin another "
        "run with a lower optim.lr or a higher loss.temperature"
    )
