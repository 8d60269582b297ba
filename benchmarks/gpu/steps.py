"""Whole training steps against forward and backward of the bare backbone on the same images.

A step is all that a worker does: uint8 views from the host, colour, forward, losses, backward,
optimiser, average of weights. The backbone alone is the limit.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from bcl_ray.data.batches import prefetch
from bcl_ray.data.views.device import augment
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar100_lt, inat18
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import Step, train_epoch
from benchmarks.gpu.machine import device_of, never_waited_for, peak_mib, profile, versus
from benchmarks.gpu.report import FAILED, OK, SKIPPED, Row
from benchmarks.gpu.supervise import Settings

COMMON = ["train.ema_decay=0.999", "scale.workers=1"]
Case = tuple[Callable[[], Experiment], int, list[str]]  # recipe, classes, options
CASES: dict[str, Case] = {
    "ResNet-32, 32 px, B = 256": (cifar100_lt, 100, []),
    "ResNet-50, 224 px, 3 x 64": (inat18, 8142, ["optim.global_batch_size=64"]),
}
# One pass over all views: compiled networks are compiled anew for each batch size.
COMPILED = ["train.compile=true", "model.batch_norm=per_worker"]
TINY = [
    "model.backbone=resnet8",
    "model.width=4",
    "model.hidden_dim=16",
    "model.feature_dim=8",
    "optim.global_batch_size=8",
    "views.image_size=16",
    "views.eval_resize=16",
]
STEPS = 10_000  # of an epoch; never reached
BATCHES = 4  # that differ


def run(settings: Settings) -> Iterator[Row]:
    """As the recipes train."""
    for name, case in CASES.items():
        yield from measured(name, case, [], settings)


def compiled(settings: Settings) -> Iterator[Row]:
    """With train.compile, on both sides; a part of its own, since compiling takes long."""
    # The smoke test has no minutes for compilers.
    torch._dynamo.config.disable = settings.smoke
    for name, case in reversed(CASES.items()):
        yield from measured(f"{name}, compiled", case, COMPILED, settings)


def measured(name: str, case: Case, options: list[str], settings: Settings) -> Iterator[Row]:
    """Rows of one network: the ratio to the limit, the memory, and that nothing is waited for."""
    recipe, classes, own = case
    tiny = TINY if settings.smoke else []
    experiment = with_overrides(recipe(), [*COMMON, *own, *options, *tiny])
    classes = 20 if settings.smoke else classes
    device = device_of(settings)
    batch = experiment.optim.global_batch_size
    learner = Learner(experiment, np.arange(classes, 0, -1), STEPS, device)
    batches = some_batches(experiment, classes)
    steps = endless(learner, batches)
    rounds = 1 if settings.smoke else 5
    bare = Bare(learner, batches[0])
    mine, limit = versus(lambda: next(steps), bare, device, rounds)
    peaks = peak_mib(lambda: next(steps), device), peak_mib(bare, device)
    detail = {
        "ms": {"step": mine * 1e3, "bare": limit * 1e3},
        "profile": profile(lambda: next(steps), device),
        "experiment": experiment.model_dump(mode="json"),
    }
    rates, against, goal = (batch / mine, batch / limit), "backbone alone", settings.goal(0.9)
    yield Row("", name, rates[0], "images/s", rates[1], against, limit / mine, goal, detail=detail)
    if None not in peaks:
        yield Row("", f"{name}, peak of memory", peaks[0], "MiB", peaks[1], against)
    yield unwaited(name, steps, device)
    learner.check()


def some_batches(experiment: Experiment, classes: int) -> list[dict[str, np.ndarray]]:
    """Batches as data tasks make them, of noise."""
    rng = np.random.default_rng(0)
    images, size = experiment.optim.global_batch_size, experiment.views.image_size
    shape = (images, 1 + experiment.num_contrastive, size, size, 3)
    return [
        {
            "views": rng.integers(0, 256, shape, np.uint8),
            "labels": rng.integers(0, classes, images),
            "ids": np.arange(number * images, (number + 1) * images),
        }
        for number in range(BATCHES)
    ]


def endless(learner: Learner, batches: list[dict[str, np.ndarray]]) -> Iterator[Step]:
    """Steps on batches that a thread sends ahead, as a worker's; each with draws of its own."""
    sent = (
        learner.sender.send_training([batch], epoch)
        for epoch, batch in enumerate(itertools.cycle(batches))
    )
    return train_epoch(learner, prefetch(sent, learner.experiment.scale.prefetch_batches), epoch=0)


class Bare:
    """Forward and backward of the backbone on a batch's images, which lie on the device."""

    def __init__(self, learner: Learner, batch: dict[str, np.ndarray]) -> None:
        self.backbone, self.autocast = learner.model.backbone, learner.autocast
        sent = learner.sender.send_training([batch], 0)
        arrays = sent.arrived()
        views = augment(arrays["views"], sent.passes, arrays, learner.experiment.views)
        self.images = views.flatten(0, 1)

    def __call__(self) -> None:
        self.backbone.zero_grad(set_to_none=True)
        with self.autocast:
            embeddings = self.backbone(self.images)
        embeddings.float().square().mean().backward()


def unwaited(name: str, steps: Iterator[Step], device: torch.device) -> Row:
    """Whether a step makes the host wait for the device."""
    what = f"{name}: the host never waits"
    if device.type == "cpu":
        return Row("", what, outcome=SKIPPED, note="a CPU cannot tell")
    try:
        with never_waited_for(device):
            count = len([next(steps) for _ in range(5)])
    except RuntimeError as error:
        return Row("", what, outcome=FAILED, note=str(error).splitlines()[0])
    return Row("", what, count, "steps", outcome=OK)
