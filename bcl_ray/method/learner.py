"""What one worker trains, and what it saves and restores; plain PyTorch."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcl_ray.data.longtail import log_prior
from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import GradientSum, begin_as_first_worker
from bcl_ray.method.model import TwoBranch
from bcl_ray.method.optim import make_optimizer
from bcl_ray.method.precision import autocast
from bcl_ray.method.pretrained import load_backbone
from bcl_ray.runs.checkpoint import State

TERMS = ("loss/total", "loss/classification", "loss/contrastive")


class NonFiniteLossError(ArithmeticError):
    """The loss or a weight is infinite or not a number; raised on all workers at the same step."""


class Learner:
    """What one worker trains: network, optimiser, average, and its place in the run.

    Args:
        experiment: what to train; its seed fixes the initial weights, and model.weights those of
            the backbone.
        class_counts: training images per class, (K,).
        steps_per_epoch: of the epoch plan.
        device: where to train.

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
        if experiment.model.weights is not None:
            load_backbone(self.model, experiment.model.weights)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, experiment.optim)
        begin_as_first_worker(self.model)
        self.average = copy.deepcopy(self.model) if experiment.train.ema_decay > 0 else None
        self.gradients = GradientSum(self.model)
        if experiment.train.compile:
            self.model.compile_stages()
        self.log_prior = torch.from_numpy(log_prior(class_counts)).float().to(device)
        self.sender = Sender(device, experiment.views, experiment.train.seed)
        self.autocast = autocast(experiment.train.precision, device)
        self.step = 0
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)

    def state(self, **about: Any) -> State:
        """Everything that a resume needs; `about` fills in what is not the learner's.

        It shares its tensors with the learner: save it before the next step.
        """
        return State(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            sums=self.sums,
            experiment=self.experiment.to_yaml(),
            **about,
        )

    def restore(self, state: State) -> None:
        """Continue from a state, of any number of workers."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        self.step = state.step
        self.sums.copy_(state.sums)
        torch.set_rng_state(state.random_state)

    def check(self) -> None:
        """Wait for the device, and make sure that the state is worth saving.

        A finite loss is not enough: it says nothing of the weights that its step has made. All
        workers come to the same answer, so call it on all of them, not on the one that saves.

        Raises:
            NonFiniteLossError: naming the step.
        """
        tensors = [self.sums, *_floating(self.model)]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise not_finite(self.step, "the loss or a weight is")

    @torch.no_grad()
    def move_average(self) -> None:
        """Move the weights' average by one step, where there is one."""
        if self.average is not None:
            # torch's AveragedModel has its counter on the host and sends it at every step. The
            # warm-up is that of TensorFlow's ExponentialMovingAverage.
            decay = min(self.experiment.train.ema_decay, (1 + self.step) / (10 + self.step))
            share = 1 - decay
            torch._foreach_lerp_(_floating(self.average), _floating(self.model), share)

    @property
    def evaluated(self) -> TwoBranch:
        """The network that is evaluated and exported: the average, where there is one."""
        return self.model if self.average is None else self.average


def _floating(model: nn.Module) -> list[Tensor]:
    """Weights and running statistics; not batch norm's counters, which nothing reads."""
    tensors = (*model.parameters(), *model.buffers())
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def not_finite(step: int, what: str) -> NonFiniteLossError:
    """The error of a step, with what to do about it."""
    return NonFiniteLossError(
        f"step {step}: {what} not finite; checkpoints from before it are kept: begin another run "
        "with a lower optim.lr or a higher loss.temperature"
    )
