"""One epoch of training, in plain PyTorch.

It takes any iterable of batches, so that it runs on a machine that has torch alone. A batch is
`views` uint8 (N, 1 + V, H, W, 3), `labels` int64 (N,), `ids` int64 (N,). Every worker's batch has
the same N, as the epoch plan deals it: with unequal ones the workers would wait for each other
for ever. Axes: N a worker's images, V contrastive views, K classes.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bcl_ray.data.views.device import transformed
from bcl_ray.data.views.transfer import Sent
from bcl_ray.method.collectives import world_size
from bcl_ray.method.learner import TERMS, Learner, not_finite
from bcl_ray.method.model import Outputs
from bcl_ray.method.objectives import global_loss
from bcl_ray.method.optim import learning_rate
from bcl_ray.method.precision import fixed_shapes

Batch = dict[str, np.ndarray]
SIGNALS = ("stop", "restart")  # what a worker may tell the others while it trains


@dataclass
class Step:
    """One training step, as `train_epoch` yields it.

    Args:
        step: steps of the whole run that are done.
        terms: TERMS of the global batch, (3,), still on the device.
        waited: seconds that the step waited for its batch.
        images: images of the global batch.
        signals: which of SIGNALS any worker gave, at the step before; the same on all workers.
    """

    step: int
    terms: Tensor
    waited: float
    images: int
    signals: frozenset[str]


def train_epoch(
    learner: Learner,
    batches: Iterable[Batch | Sent],
    *,
    epoch: int,
    signals: Callable[[], frozenset[str]] = frozenset,
) -> Iterator[Step]:
    """Train on an epoch's batches, or on those that are left of it; yields every step.

    Args:
        learner: what is trained.
        batches: this worker's, or what `Learner.sender` made of them, which is faster.
        epoch: its number, which the views depend on.
        signals: asked at every step which of SIGNALS this worker gives. They travel with the
            gradients, so that all workers learn of them at the same step, at no cost.

    The loss is checked one step late: by then its value is there, and asking for it does not
    make the device wait. Before a state is saved in the middle of an epoch, `Learner.check` does
    it at once; at the end this generator has called it.

    Raises:
        NonFiniteLossError: on all workers at once, naming the step.
    """
    learner.model.train()
    with fixed_shapes():
        yield from _steps(learner, batches, epoch, signals)
    learner.check()


def _steps(
    learner: Learner,
    batches: Iterable[Batch | Sent],
    epoch: int,
    signals: Callable[[], frozenset[str]],
) -> Iterator[Step]:
    check_previous: Callable[[], frozenset[str]] = frozenset
    asked = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - asked
        lr = learning_rate(
            learner.step,
            learner.steps_per_epoch,
            learner.experiment.train.epochs,
            learner.experiment.optim,
        )
        for group in learner.optimizer.param_groups:
            group["lr"] = lr
        sent = batch if isinstance(batch, Sent) else learner.sender.training([batch], epoch)
        told = _train_step(learner, sent, signals())
        given = check_previous()
        check_previous = _late_check(learner.step, told)
        images = len(sent.host["labels"]) * world_size()
        yield Step(learner.step, told[: len(TERMS)], waited, images, given)
        asked = time.perf_counter()
    check_previous()


def _train_step(learner: Learner, sent: Sent, signals: frozenset[str]) -> Tensor:
    """One step; returns TERMS of the global batch, and how many workers gave each of SIGNALS."""
    experiment = learner.experiment
    arrays, labels = sent.arrived(), sent.tensors["labels"]
    views = transformed(arrays["views"], sent.passes, arrays, experiment.views)
    with learner.autocast:
        outputs: Outputs = learner.model(views)
    total, terms = global_loss(outputs, labels, learner.log_prior, experiment.loss)
    learner.optimizer.zero_grad(set_to_none=True)
    total.backward()
    # Filled on the device: a list would be copied there, and the host would wait for it.
    given = [terms.new_full((1,), float(name in signals)) for name in SIGNALS]
    told = torch.cat([terms, *given])
    learner.gradients.finish(told)
    learner.optimizer.step()
    learner.move_average()
    learner.step += 1
    learner.sums += told[: len(TERMS)]
    return told


def _late_check(step: int, told: Tensor) -> Callable[[], frozenset[str]]:
    """Start to copy what a step told to the host; the result waits for that copy and checks it."""
    values = told.to("cpu", non_blocking=True)
    # Reading `told` later would wait for all that has been queued since, the next step above all.
    copied = torch.Event(told.device) if told.is_cuda else None
    if copied is not None:
        copied.record()

    def check() -> frozenset[str]:
        if copied is not None:
            copied.synchronize()
        if not values.isfinite().all():
            named = zip(TERMS, values.tolist(), strict=False)
            found = ", ".join(f"{name} {value}" for name, value in named)
            raise not_finite(step, f"the loss ({found}) is")
        given = zip(SIGNALS, values[len(TERMS) :].tolist(), strict=True)
        return frozenset(name for name, workers in given if workers)

    return check
