"""One epoch of training and one evaluation, in plain PyTorch.

Both take any iterable of batches, so that they run on a machine that has torch alone. A batch
is `views` uint8 (N, 1 + V, H, W, 3), `labels` int64 (N,), `ids` int64 (N,); of evaluation
images there is one view. Every worker's batch has the same N, as the epoch plan deals it: with
unequal ones the workers would wait for each other for ever. Axes: N a worker's images, V
contrastive views, K classes.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcl_ray import losses, metrics
from bcl_ray.checkpoint import State
from bcl_ray.config import Experiment, LossConfig
from bcl_ray.distributed import GradientSum, gather_with_grad, rank, world_size
from bcl_ray.longtail import log_prior
from bcl_ray.model import BalancedContrastiveModel, Outputs
from bcl_ray.optim import learning_rate, make_optimizer
from bcl_ray.views.device import device_views, normalized

Batch = dict[str, np.ndarray]
TERMS = ("loss/total", "loss/classification", "loss/contrastive")


class NonFiniteLossError(ArithmeticError):
    """The loss or a weight is infinite or not a number; raised on all workers at the same step."""


@dataclass
class Step:
    """One training step, as `train_epoch` yields it.

    Args:
        step: steps of the whole run that are done.
        terms: TERMS of the global batch, (3,), still on the device.
        waited: seconds that the step waited for its batch.
        images: images of the global batch.
    """

    step: int
    terms: Tensor
    waited: float
    images: int


class Learner:
    """What one worker trains: network, optimiser, average, and its place in the run.

    Args:
        experiment: what to train; its seed fixes the initial weights.
        class_counts: training images per class, (K,).
        steps_per_epoch: of the epoch plan.
        device: where to train.
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
        self.model = BalancedContrastiveModel(experiment.model, len(class_counts))
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, experiment.optim)
        self.average = copy.deepcopy(self.model) if experiment.train.ema_decay > 0 else None
        self.gradients = GradientSum(self.model)
        self.forward = torch.compile(self.model) if experiment.train.compile else self.model
        self.log_prior = torch.from_numpy(log_prior(class_counts)).float().to(device)
        self.autocast = _autocast(experiment.train.precision, device)
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
            raise _not_finite(self.step, "the loss or a weight is")

    @property
    def evaluated(self) -> BalancedContrastiveModel:
        """The network that is evaluated and exported: the average, where there is one."""
        return self.model if self.average is None else self.average


def _floating(model: nn.Module) -> list[Tensor]:
    """Weights and running statistics; not batch norm's counters, which nothing reads."""
    tensors = (*model.parameters(), *model.buffers())
    return [tensor for tensor in tensors if tensor.is_floating_point()]


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    # torch's AveragedModel has its counter on the host and sends it at every step.
    torch._foreach_lerp_(_floating(average), _floating(model), 1 - decay)


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    # Older GPUs emulate it, which is slower than float32.
    automatic = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = precision == "bfloat16" or (precision == "auto" and automatic)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def train_epoch(learner: Learner, batches: Iterable[Batch], *, epoch: int) -> Iterator[Step]:
    """Train on an epoch's batches, or on those that are left of it; yields every step.

    The loss is checked one step late: by then its value is there, and asking for it does not
    make the device wait. Before a state is saved in the middle of an epoch, `Learner.check` does
    it at once; at the end this generator has called it.

    Raises:
        NonFiniteLossError: on all workers at once, naming the step.
    """
    learner.model.train()
    check_previous: Callable[[], None] | None = None
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
        terms = _train_step(learner, batch, epoch)
        if check_previous is not None:
            check_previous()
        check_previous = _late_check(learner.step, terms)
        yield Step(learner.step, terms, waited, len(batch["labels"]) * world_size())
        asked = time.perf_counter()
    if check_previous is not None:
        check_previous()
        learner.check()


def _train_step(learner: Learner, batch: Batch, epoch: int) -> Tensor:
    experiment = learner.experiment
    views = device_views(
        _sent(batch["views"], learner.device),
        batch["ids"],
        experiment.views,
        seed=experiment.train.seed,
        epoch=epoch,
    )
    labels = _sent(batch["labels"], learner.device)
    with learner.autocast:
        outputs: Outputs = learner.forward(views)
    total, terms = global_loss(outputs, labels, learner.log_prior, experiment.loss)
    learner.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    learner.gradients.finish(terms)
    learner.optimizer.step()
    if learner.average is not None:
        _move_average(learner.average, learner.model, experiment.train.ema_decay)
    learner.step += 1
    learner.sums += terms
    return terms


def global_loss(
    outputs: Outputs, labels: Tensor, prior: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """This worker's share of the global batch's loss, and of its TERMS (3,), detached."""
    classification = losses.logit_adjusted_cross_entropy(
        outputs.logits, labels, prior, tau=config.tau, num_images=len(labels) * world_size()
    )
    contrastive = torch.zeros_like(classification)
    if config.contrastive_weight > 0:
        contrastive = _contrastive_loss(outputs, labels, config)
    total = config.classification_weight * classification
    total = total + config.contrastive_weight * contrastive
    return total, torch.stack([total, classification, contrastive]).detach()


def _contrastive_loss(outputs: Outputs, labels: Tensor, config: LossConfig) -> Tensor:
    # Every image is compared with every other: plain data parallelism would silently shrink the
    # batch to one worker's share.
    keys = losses.Keys(
        gather_with_grad(outputs.features, 1), gather_with_grad(labels, 0), rank() * len(labels)
    )
    options: dict[str, Any] = {"temperature": config.temperature, "keys": keys}
    options["anchor_mean"] = config.anchor_mean
    if config.contrastive == "balanced":
        return losses.balanced_contrastive_loss(
            outputs.features, outputs.prototypes, labels, **options
        )
    return losses.supervised_contrastive_loss(outputs.features, labels, **options)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; to a GPU from pinned memory, without which the host would wait."""
    # Not from_numpy, which warns of Ray's arrays: they are read-only.
    return torch.tensor(array, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _late_check(step: int, terms: Tensor) -> Callable[[], None]:
    """Start to copy a step's TERMS to the host; the result waits for that copy and checks it."""
    values = terms.to("cpu", non_blocking=True)
    # Reading `terms` later would wait for all that has been queued since, the next step above all.
    copied = torch.Event(terms.device) if terms.is_cuda else None
    if copied is not None:
        copied.record()

    def check() -> None:
        if copied is not None:
            copied.synchronize()
        if not values.isfinite().all():
            named = zip(TERMS, values.tolist(), strict=True)
            found = ", ".join(f"{name} {value}" for name, value in named)
            raise _not_finite(step, f"the loss ({found}) is")

    return check


def _not_finite(step: int, what: str) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"step {step}: {what} not finite; the checkpoint before it is kept: lower optim.lr or "
        "raise loss.temperature"
    )


@torch.no_grad()
def evaluate(
    model: BalancedContrastiveModel,
    batches: Iterable[Batch],
    *,
    experiment: Experiment,
    class_counts: np.ndarray,
    rows: int,
    device: torch.device,
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy and calibration over all workers, every image counted exactly once.

    Args:
        model: the network to evaluate.
        batches: this worker's part of the split.
        experiment: its views and precision.
        class_counts: training images per class, (K,), which make the shot groups.
        rows: images that the manifest says there are.
        device: where the model is.

    Returns:
        Metrics by name, and the accuracy of each class in per cent, (K,), NaN without images.

    Raises:
        RuntimeError: the number of images counted is not `rows`.
    """
    model.eval()
    counts = metrics.no_counts(len(class_counts), device)
    autocast = _autocast(experiment.train.precision, device)
    for batch in batches:
        images = normalized(_sent(batch["views"], device), experiment.views)[0]
        with autocast:
            logits = model.classify(images)
        counts += metrics.count_batch(logits, _sent(batch["labels"], device))
    counts = counts.over_workers()
    counted = int(counts.total.sum())
    if counted != rows:
        raise RuntimeError(
            f"evaluation counted {counted} images of {rows}: every image must be counted once; "
            "this is a fault of the stream, not of the data"
        )
    per_class = metrics.class_accuracy(counts.correct, counts.total)
    return metrics.evaluation_metrics(counts, class_counts), per_class.cpu().numpy()
