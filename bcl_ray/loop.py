"""One epoch of training and one evaluation, in plain PyTorch.

Both take any iterable of batches, so that they run on a machine that has torch alone. A batch
is `views` uint8 (N, 1 + V, H, W, 3), `labels` int64 (N,), `ids` int64 (N,); of evaluation
images there is one view. Axes: N a worker's images, V contrastive views, K classes.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bcl_ray import losses, metrics
from bcl_ray.checkpoint import State
from bcl_ray.config import Experiment
from bcl_ray.distributed import GradientSum, gather_with_grad, rank, world_size
from bcl_ray.longtail import log_prior
from bcl_ray.model import BalancedContrastiveModel, Outputs
from bcl_ray.optim import learning_rate, make_optimizer
from bcl_ray.views.device import device_views, normalized

Batch = dict[str, np.ndarray]
TERMS = ("loss/total", "loss/classification", "loss/contrastive")


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or not a number; raised on every worker at the same step."""


@dataclass
class Step:
    """One training step, as `train_epoch` yields it.

    Args:
        step: steps of the whole run that are done.
        terms: TERMS of the global batch, (3,), float64, still on the device.
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
        self.average = _average(self.model, experiment.train.ema_decay)
        self.gradients = GradientSum(self.model)
        self.forward = torch.compile(self.model) if experiment.train.compile else self.model
        self.log_prior = torch.from_numpy(log_prior(class_counts)).float().to(device)
        self.autocast = _autocast(experiment.train.precision, device)
        self.step = 0
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)

    def state(self, **about: Any) -> State:
        """Everything that a resume needs; `about` fills in what is not the learner's."""
        return State(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=self.average.state_dict() if self.average else None,
            sums=self.sums,
            experiment=self.experiment.to_yaml(),
            **about,
        )

    def restore(self, state: State) -> None:
        """Continue from a state, of any number of workers."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average and state.average:
            self.average.load_state_dict(state.average)
        self.step = state.step
        self.sums.copy_(state.sums)
        torch.set_rng_state(state.random_state)

    @property
    def evaluated(self) -> BalancedContrastiveModel:
        """The network that is evaluated and exported: the average, where there is one."""
        model = self.average.module if self.average else self.model
        return model  # type: ignore[return-value]


def _average(model: nn.Module, decay: float) -> AveragedModel | None:
    if decay == 0:
        return None
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=rule, use_buffers=True)


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    automatic = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = precision == "bfloat16" or (precision == "auto" and automatic)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def train_epoch(learner: Learner, batches: Iterable[Batch], *, epoch: int) -> Iterator[Step]:
    """Train on an epoch's batches, or on those that are left of it; yields every step.

    The loss is checked one step late: by then its value is there, and asking for it does not
    make the device wait. No state may be saved before the generator has ended or yielded, and
    what it yields has been checked up to the step before.

    Raises:
        NonFiniteLossError: on all workers at once, naming the step.
    """
    learner.model.train()
    previous: Step | None = None
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
        if previous is not None:
            _check_finite(previous)
        previous = Step(learner.step, terms, waited, len(batch["labels"]) * world_size())
        yield previous
        asked = time.perf_counter()
    if previous is not None:
        _check_finite(previous)


def _train_step(learner: Learner, batch: Batch, epoch: int) -> Tensor:
    experiment = learner.experiment
    views = device_views(
        torch.from_numpy(batch["views"]).to(learner.device, non_blocking=True),
        batch["ids"],
        experiment.views,
        seed=experiment.train.seed,
        epoch=epoch,
    )
    labels = torch.from_numpy(batch["labels"]).to(learner.device, non_blocking=True)
    with learner.autocast:
        outputs: Outputs = learner.forward(views)
    total, terms = global_loss(outputs, labels, learner.log_prior, experiment)
    learner.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    learner.gradients.finish(terms)
    learner.optimizer.step()
    if learner.average:
        learner.average.update_parameters(learner.model)
    learner.step += 1
    learner.sums += terms
    return terms


def global_loss(
    outputs: Outputs, labels: Tensor, prior: Tensor, experiment: Experiment
) -> tuple[Tensor, Tensor]:
    """This worker's share of the global batch's loss, and of its TERMS (3,), detached.

    Every image is compared with every other, so features and labels of all workers are
    gathered: plain data parallelism would silently shrink the batch to one worker's share.
    """
    weights = experiment.loss
    classification = losses.logit_adjusted_cross_entropy(
        outputs.logits, labels, prior, tau=weights.tau, num_images=len(labels) * world_size()
    )
    contrastive = torch.zeros_like(classification)
    if weights.contrastive_weight > 0:
        options: dict[str, Any] = {"temperature": weights.temperature}
        options["anchor_mean"] = weights.anchor_mean
        if world_size() > 1:
            options["keys"] = losses.Keys(
                gather_with_grad(outputs.features, 1),
                gather_with_grad(labels, 0),
                rank() * len(labels),
            )
        if weights.contrastive == "balanced":
            contrastive = losses.balanced_contrastive_loss(
                outputs.features, outputs.prototypes, labels, **options
            )
        else:
            contrastive = losses.supervised_contrastive_loss(outputs.features, labels, **options)
    total = weights.classification_weight * classification
    total = total + weights.contrastive_weight * contrastive
    return total, torch.stack([total, classification, contrastive]).detach()


def _check_finite(step: Step) -> None:
    if not torch.isfinite(step.terms).all():
        values = ", ".join(
            f"{name} {value}" for name, value in zip(TERMS, step.terms.tolist(), strict=True)
        )
        raise NonFiniteLossError(
            f"step {step.step}: the loss is not finite ({values}); the checkpoint before it is "
            "kept: lower optim.lr or raise loss.temperature"
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
        images = normalized(torch.from_numpy(batch["views"]).to(device), experiment.views)[0]
        with autocast:
            logits = model.classify(images)
        counts += metrics.count_batch(logits, torch.from_numpy(batch["labels"]).to(device))
    counts = counts.over_workers()
    counted = int(counts.total.sum())
    if counted != rows:
        raise RuntimeError(
            f"evaluation counted {counted} images of {rows}: every image must be counted once; "
            "this is a fault of the stream, not of the data"
        )
    per_class = metrics.class_accuracy(counts.correct, counts.total)
    return metrics.evaluation_metrics(counts, class_counts), per_class.cpu().numpy()
