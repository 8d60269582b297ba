"""Which operations an image gets, in which order and how strongly: drawn on the host, keyed.

Axes: N images, M = (1 + V) * N views, S stages. Stages are in the order of published recipes:
four of colour jitter (their order differs from image to image), grayscale, blur where a view has
any, then the policy.

Sources: the authors' recipes (FlamieZhu/Balanced-Contrastive-Learning, main.py) with timm's
RandAugment; blur of Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020,
appendix A; for CIFAR the policy of Cubuk et al., "AutoAugment", CVPR 2019, table 7.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.views import keyed
from bcl_ray.data.views.coefficients import NAMES
from bcl_ray.data.views.schedule import NONE
from bcl_ray.experiment.options import ViewConfig, ViewsConfig

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]
Stage = tuple[Indices, Floats]  # per image: index of the operation in NAMES or NONE, its amount

# Streams of draws; the host half's geometry is 0. A number once given stays, or views change.
_JITTER, _GRAYSCALE, _POLICY, _CUTOUT, _BLUR = 1, 2, 3, 4, 5
_JITTERED = np.array([NAMES.index(n) for n in ("brightness", "contrast", "saturation", "hue")])
_TORCHVISION_NAMES = {
    "Brightness": "brightness",
    "Contrast": "contrast",
    "Color": "saturation",
    "Sharpness": "sharpness",
    "Invert": "invert",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
}


class Plan(NamedTuple):
    """The operations of a batch of views, stage by stage, view by view."""

    kinds: Indices  # (S, M): index in NAMES, or NONE
    amounts: NDArray[np.float32]  # (S, M)


def planned(ids: Indices, config: ViewsConfig, *, num_views: int, seed: int, epoch: int) -> Plan:
    """Draw the operations of views 0 to num_views - 1 of the images with these ids, (N,)."""
    per_view = []
    for view in range(num_views):
        kind = config.classification if view == 0 else config.contrastive
        draw = partial(keyed.uniforms, seed, epoch, ids, view)
        stages = _jitter(kind, draw(9, stream=_JITTER))
        stages.append(_grayscale(kind, draw(1, stream=_GRAYSCALE)[:, 0]))
        if kind.blur:
            stages.append(_blur(kind, draw(2, stream=_BLUR)))
        if kind.policy == "randaugment":
            draws = draw(5 * config.randaugment_ops, stream=_POLICY)
            stages += [_randaugment(config, part) for part in _split(draws, 5)]
        elif kind.policy == "cifar10":
            stages += _cifar10(draw(5, stream=_POLICY))
        per_view.append(stages)
    nothing: Stage = (np.full(len(ids), NONE), np.zeros(len(ids)))
    length = max(map(len, per_view))
    padded = [stages + [nothing] * (length - len(stages)) for stages in per_view]
    kinds, amounts = (
        np.stack([np.concatenate([stages[s][part] for stages in padded]) for s in range(length)])
        for part in (0, 1)
    )
    return Plan(kinds, amounts.astype(np.float32))


def cutout_centres(ids: Indices, size: int, *, seed: int, epoch: int, view: int) -> Indices:
    """Row and column of each image's square, uniform over the pixels, (N, 2)."""
    draws = keyed.uniforms(seed, epoch, ids, view, 2, stream=_CUTOUT)
    return (draws * size).astype(np.int64)


def cutout(
    ids: Indices, config: ViewsConfig, view: int, *, seed: int, epoch: int
) -> NDArray[np.bool]:
    """Which rows and columns of a view each image's square covers, (N, 2, S)."""
    side = (config.classification if view == 0 else config.contrastive).cutout
    centres = cutout_centres(ids, config.image_size, seed=seed, epoch=epoch, view=view)
    starts, position = centres[..., None] - side // 2, np.arange(config.image_size)
    return (position >= starts) & (position < starts + side)


def _jitter(kind: ViewConfig, draws: Floats) -> list[Stage]:
    """Torchvision's ColorJitter: four factors, applied in a random order."""
    reach = np.array(kind.jitter)
    lowest = np.append(np.maximum(0, 1 - reach[:3]), -reach[3])
    highest = np.append(1 + reach[:3], reach[3])
    factors = lowest + (highest - lowest) * draws[:, 5:9]
    order = draws[:, 1:5].argsort(axis=1)
    active = (draws[:, :1] < kind.jitter_probability) & (reach[order] > 0)
    kinds = np.where(active, _JITTERED[order], NONE)
    amounts = np.take_along_axis(factors, order, axis=1)
    return list(zip(kinds.T, amounts.T, strict=True))


def _grayscale(kind: ViewConfig, draws: Floats) -> Stage:
    return np.where(draws < kind.grayscale, NAMES.index("grayscale"), NONE), np.zeros(len(draws))


def _blur(kind: ViewConfig, draws: Floats) -> Stage:
    """SimCLR's standard deviations, 0.1 to 2 pixels."""
    kinds = np.where(draws[:, 0] < kind.blur, NAMES.index("gaussian_blur"), NONE)
    return kinds, 0.1 + 1.9 * draws[:, 1]


def _randaugment(config: ViewsConfig, draws: Floats) -> Stage:
    """One of 15 operations, with probability 1/2, of normally distributed strength."""
    choice, applied, sign, radius, angle = draws.T
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    level = config.randaugment_magnitude + config.randaugment_deviation * normal
    candidates = _randaugment_amounts(level.clip(0, 10) / 10, np.where(sign < 0.5, -1.0, 1.0))
    chosen = (choice * len(candidates)).astype(np.int64)
    kinds = np.array([NAMES.index(name) for name in candidates])[chosen]
    amounts = np.stack(list(candidates.values()))[chosen, np.arange(len(chosen))]
    return np.where(applied < 0.5, kinds, NONE), amounts


def _randaugment_amounts(share: Floats, sign: Floats) -> dict[str, Floats]:
    """Amounts at a share (0 to 1) of full strength, as timm's first RandAugment set them."""
    zero, factor = np.zeros_like(share), 0.1 + 1.8 * share
    return {
        "autocontrast": zero,
        "equalize": zero,
        "invert": zero,
        "rotate": 30 * share * sign,
        "posterize": np.floor(4 * share),
        "solarize": np.floor(256 * share),
        "solarize_add": np.floor(110 * share),
        "saturation": factor,
        "contrast": factor,
        "brightness": factor,
        "sharpness": factor,
        "shear_x": 0.3 * share * sign,
        "shear_y": 0.3 * share * sign,
        "translate_x": 0.45 * share * sign,
        "translate_y": 0.45 * share * sign,
    }


def _cifar10(draws: Floats) -> list[Stage]:
    """One of 25 pairs of operations, each operation with its own probability."""
    kinds, probabilities, magnitudes = _cifar10_table()
    pair = (draws[:, 0] * len(kinds)).astype(np.int64)
    stages = []
    for i in (0, 1):
        applied, sign = draws[:, 1 + i] < probabilities[pair, i], draws[:, 3 + i] < 0.5
        amounts = magnitudes[pair, i, sign.astype(np.int64)]
        stages.append((np.where(applied, kinds[pair, i], NONE), amounts))
    return stages


@cache
def _cifar10_table() -> tuple[Indices, Floats, Floats]:
    """Operations (25, 2), their probabilities (25, 2), their amounts by sign (25, 2, 2)."""
    # A second of import, which runs without this policy need not pay.
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # noqa: PLC0415

    pairs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    names = [[_TORCHVISION_NAMES[name] for name, _, _ in pair] for pair in pairs]
    return (
        np.array([[NAMES.index(name) for name in pair] for pair in names]),
        np.array([[probability for _, probability, _ in pair] for pair in pairs]),
        np.array(
            [
                [_cifar10_amounts(_TORCHVISION_NAMES[name], (bin_ or 0) / 9) for name, _, bin_ in p]
                for p in pairs
            ]
        ),
    )


def _cifar10_amounts(name: str, share: float) -> tuple[float, float]:
    """The positive and the negative amount at a share (0 to 1) of full strength."""
    if name == "posterize":
        return (8.0 - round(4 * share),) * 2
    if name == "solarize":
        return (255 * (1 - share),) * 2
    for prefix, most in (("shear", 0.3), ("translate", 150 / 331), ("rotate", 30.0)):
        if name.startswith(prefix):
            return most * share, -most * share
    return 1 + 0.9 * share, 1 - 0.9 * share  # factors; the others take no amount


def _split(draws: Floats, width: int) -> Sequence[Floats]:
    return np.split(draws, draws.shape[1] // width, axis=1)
