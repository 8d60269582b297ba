"""The device half of the views, for whole batches, against libraries on the same GPU.

torchvision's transforms of a batch draw once for all of its images, so each image goes by itself,
as users of it do. kornia, where it is there, draws for each image of a batch; its policies do
not, so it is asked for the contrastive views alone, which have none.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from bcl_ray.data.views.device import augment, draw_augmentations
from bcl_ray.experiment.options import ViewConfig, ViewsConfig
from bcl_ray.experiment.recipes import cifar100_lt, inat18
from benchmarks.gpu.machine import device_of, profile, versus
from benchmarks.gpu.report import SKIPPED, Row
from benchmarks.gpu.supervise import Settings

CASES: dict[str, tuple[ViewsConfig, int]] = {
    "256 x 3 views of 32 px": (cifar100_lt().views, 256),
    "64 x 3 views of 224 px": (inat18().views, 64),
}
V = 2
TINY = 4  # images
POLICIES: dict[str, Callable[[], Any]] = {
    "randaugment": lambda: v2.RandAugment(2, 10),
    "cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
}


def run(settings: Settings) -> Iterator[Row]:
    device = device_of(settings)
    rounds = 1 if settings.smoke else 3
    for name, (config, images) in CASES.items():
        count = TINY if settings.smoke else images
        views = some_views(count, config, device)
        ids = np.arange(count)
        mine = Drawn(views, ids, config)
        taken = versus(mine, PerImage(views, config), device, rounds)
        detail = {"profile": profile(mine, device)}
        against, goal = "torchvision v2, per image", settings.goal(1.0)
        yield _row(name, count, taken, against, goal=goal, detail=detail)
        sent = versus(OnDevice(views, ids, config), mine, device, rounds)
        yield _row(name, count, sent, "with the draws, which run ahead")
        if importlib.util.find_spec("kornia") is None:
            yield Row("", name, against="kornia", outcome=SKIPPED, note="no kornia here")
            continue
        contrastive = views[:, 1:].contiguous()
        alone = config.model_copy(update={"classification": config.contrastive})
        taken = versus(Drawn(contrastive, ids, alone), Kornia(contrastive, config), device, rounds)
        yield _row(f"{name}, contrastive", count, taken, "kornia", goal=goal)


def _row(what: str, images: int, taken: tuple[float, float], against: str, **more: Any) -> Row:
    """Images per second of both sides."""
    mine, theirs = (images / seconds for seconds in taken)
    return Row("", what, mine, "images/s", theirs, against, mine / theirs, **more)


def some_views(images: int, config: ViewsConfig, device: torch.device) -> Tensor:
    shape = (images, 1 + V, config.image_size, config.image_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return torch.from_numpy(noise).to(device)


class Drawn:
    """Ours: new draws at every call."""

    def __init__(self, views: Tensor, ids: np.ndarray, config: ViewsConfig) -> None:
        self.views, self.ids, self.config, self.epoch = views, ids, config, 0

    def __call__(self) -> Tensor:
        self.epoch += 1
        return OnDevice(self.views, self.ids, self.config, self.epoch)()


class OnDevice:
    """Ours, without what the thread that runs ahead does: the same draws at every call."""

    def __init__(self, views: Tensor, ids: np.ndarray, config: ViewsConfig, epoch: int = 0) -> None:
        drawn = draw_augmentations(ids, config, num_views=views.shape[1], seed=0, epoch=epoch)
        self.views, self.passes, self.config = views, drawn.passes, config
        self.arrays = {key: torch.from_numpy(a).to(views.device) for key, a in drawn.arrays.items()}

    def __call__(self) -> Tensor:
        return augment(self.views, self.passes, self.arrays, self.config)


class PerImage:
    """torchvision's, view by view."""

    def __init__(self, views: Tensor, config: ViewsConfig) -> None:
        self.images = views.permute(0, 1, 4, 2, 3).contiguous()
        kinds = [config.classification, *[config.contrastive] * V]
        self.transforms = [self.transform(kind, config) for kind in kinds]

    @staticmethod
    def transform(kind: ViewConfig, config: ViewsConfig) -> Callable[[Tensor], Tensor]:
        steps: list[Any] = []
        if any(kind.jitter):
            jitter = v2.ColorJitter(*kind.jitter)
            steps.append(v2.RandomApply([jitter], p=kind.jitter_probability))
        if kind.grayscale:
            steps.append(v2.RandomGrayscale(kind.grayscale))
        if kind.policy in POLICIES:
            steps.append(POLICIES[kind.policy]())
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
        composed: Callable[[Tensor], Tensor] = v2.Compose(steps)
        return composed

    def __call__(self) -> list[Tensor]:
        return [
            transform(view)
            for image in self.images
            for transform, view in zip(self.transforms, image, strict=True)
        ]


class Kornia:
    """kornia's jitter, grayscale and normalisation of whole batches."""

    def __init__(self, views: Tensor, config: ViewsConfig) -> None:
        from kornia import augmentation  # type: ignore[import-not-found]  # noqa: PLC0415

        kind = config.contrastive
        self.images = views.permute(0, 1, 4, 2, 3).flatten(0, 1).contiguous()
        mean, std = (torch.tensor(values) for values in (config.mean, config.std))
        self.transform = augmentation.AugmentationSequential(
            augmentation.ColorJiggle(*kind.jitter, p=kind.jitter_probability),
            augmentation.RandomGrayscale(p=kind.grayscale),
            augmentation.Normalize(mean, std),
        ).to(views.device)

    def __call__(self) -> Any:
        return self.transform(self.images.float().div_(255))
