"""One epoch of training on any iterable of batches; needs torch, but neither Ray nor MLflow.

A batch is a dict with `views` uint8 (N, 1 + V, H, W, 3), `labels` int64 (N,) and `ids` int64 (N,).
The epoch plan gives all workers batches with the same N: otherwise they would wait for each other
forever.

Axes: N images of a worker, V contrastive views, K classes, H x W pixels.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bcl_ray.data.views.device import augment
from bcl_ray.data.views.transfer import Batch, DeviceBatch
from bcl_ray.method.collectives import world_size
from bcl_ray.method.learner import TERMS, Learner, non_finite_error
from bcl_ray.method.model import Outputs
from bcl_ray.method.objectives import loss_share
from bcl_ray.method.precision import cudnn_benchmark

Signals = frozenset[str]
SIGNALS = ("stop", "restart")  # what a worker can ask all workers to do


@dataclass
class Step:
    """One training step, as `train_epoch` yields it."""

    step: int
    """Number of completed steps of the run."""
    terms: Tensor
    """TERMS of the global batch, (3,), still on the device."""
    waited: float
    """Seconds that the step waited for its batch."""
    images: int
    """Images of the global batch."""
    signals: Signals
    """Those of SIGNALS that any worker gave in the step before; the same on all workers."""


def train_epoch(
    learner: Learner,
    batches: Iterable[Batch | DeviceBatch],
    *,
    epoch: int,
    signals: Callable[[], Signals] = frozenset,
) -> Iterator[Step]:
    """Train on the batches of an epoch, or on the rest of them, and yield every step.

    The loss of a step is checked one step later: by then the host has its value and does not have
    to wait for the device. The last loss is checked before this generator ends. Before a state is
    saved in the middle of an epoch, `Learner.check` checks at once.

    Args:
        learner: The network and its state, which are changed in place.
        batches: This worker's batches. It is faster if `Learner.sender` has already copied them
            to the device.
        epoch: Number of the epoch, from which the views are derived.
        signals: Called at every step; returns those of SIGNALS that this worker gives. They are
            summed together with the gradients, so all workers get them at the same step.

    Raises:
        NonFiniteLossError: The loss or a weight is not finite; raised on all workers at the same
            step.
    """
    learner.begin_epoch(epoch)
    with cudnn_benchmark():
        yield from _steps(learner, batches, epoch, signals)
    learner.check()


def _steps(
    learner: Learner,
    batches: Iterable[Batch | DeviceBatch],
    epoch: int,
    signals: Callable[[], Signals],
) -> Iterator[Step]:
    read_previous: Callable[[], Signals] = frozenset
    requested = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - requested
        lr = learner.learning_rate_at(learner.step)
        for group in learner.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)  # none in older checkpoints
        device_batch = (
            batch
            if isinstance(batch, DeviceBatch)
            else learner.sender.send_training([batch], epoch)
        )
        sums = _train_step(learner, device_batch, signals())
        previous_signals = read_previous()
        read_previous = _copy_to_host(learner.step, sums)
        images = len(device_batch.host["labels"]) * world_size()
        yield Step(learner.step, sums[: len(TERMS)], waited, images, previous_signals)
        requested = time.perf_counter()
    read_previous()  # checks the last loss


def _train_step(learner: Learner, device_batch: DeviceBatch, signals: Signals) -> Tensor:
    """Train on one batch.

    Returns:
        Sums over workers, (5,): TERMS of the global batch, then for each of SIGNALS the number of
        workers that gave it.
    """
    experiment = learner.experiment
    arrays, labels = device_batch.arrived(), device_batch.tensors["labels"]
    views = augment(arrays["views"], device_batch.passes, arrays, experiment.views)
    learner.seed_step()
    with learner.autocast:
        outputs: Outputs = learner.model(views)
    total, terms = loss_share(outputs, labels, learner.log_prior, experiment.loss)
    learner.optimizer.zero_grad(set_to_none=True)
    total.backward()
    # Made on the device: if a list were copied there, the host would have to wait for the copy.
    flags = [terms.new_full((1,), float(name in signals)) for name in SIGNALS]
    sums = torch.cat([terms, *flags])
    learner.gradients.finish(sums)
    learner.clip_gradients()
    learner.optimizer.step()
    learner.move_average()
    learner.step += 1
    learner.sums += sums[: len(TERMS)]
    return sums


def _copy_to_host(step: int, sums: Tensor) -> Callable[[], Signals]:
    """Start to copy the sums of a step to the host.

    Returns:
        A function that waits for the copy, checks the loss, and returns the signals.
    """
    values = sums.to("cpu", non_blocking=True)
    # Reading `sums` later would also wait for everything queued since, such as the next step.
    copied = torch.Event(sums.device) if sums.is_cuda else None
    if copied is not None:
        copied.record()

    def read() -> Signals:
        if copied is not None:
            copied.synchronize()
        if not values.isfinite().all():
            terms = zip(TERMS, values.tolist(), strict=False)
            text = ", ".join(f"{name} {value}" for name, value in terms)
            raise non_finite_error(step, f"the loss ({text}) is")
        given = zip(SIGNALS, values[len(TERMS) :].tolist(), strict=True)
        return frozenset(name for name, num_workers in given if num_workers)

    return read
