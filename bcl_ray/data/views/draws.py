"""Drawing the operations of each image: which ones, in which order, and how strong.

Drawn on the host, with keyed random numbers. The stages are in the order of published recipes: four
of colour jitter (in an order that differs from image to image), grayscale, blur (for views that
have it), then the policy.

Axes: N images, M = (1 + V) * N views, S stages.

Sources: the authors' recipes (FlamieZhu/Balanced-Contrastive-Learning, main.py), with RandAugment
as in timm; blur as in Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020,
appendix A; for CIFAR the policy of Cubuk et al., "AutoAugment", CVPR 2019, table 7.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.keyed import Stream, uniforms
from bcl_ray.data.views.coefficients import NAMES
from bcl_ray.data.views.schedule import NONE
from bcl_ray.experiment.options import ViewConfig, ViewsConfig

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]
# Per image: index of its operation in NAMES, or NONE; and its amount.
Stage = tuple[Indices, Floats]
Draw = Callable[..., Floats]  # draws `count` uniform numbers per image: see `uniforms`

_JITTER_KINDS = np.array([NAMES.index(n) for n in ("brightness", "contrast", "saturation", "hue")])
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


class OperationPlan(NamedTuple):
    """The operations of a batch of views; the images of view 0 come first, then those of view 1."""

    kinds: Indices
    """Index in NAMES, or NONE, (S, M)."""
    amounts: NDArray[np.float32]
    """Amounts of the operations, (S, M)."""


def draw_operations(
    ids: Indices, config: ViewsConfig, *, num_views: int, seed: int, epoch: int
) -> OperationPlan:
    """Draw the operations of views 0 to num_views - 1 of the images with these ids, (N,)."""
    per_view = []
    for view in range(num_views):
        options = config.of_view(view)
        draw = partial(uniforms, seed, epoch, ids, view)
        stages = _jitter(options, draw(9, stream=Stream.JITTER))
        stages.append(_grayscale(options, draw(1, stream=Stream.GRAYSCALE)[:, 0]))
        if options.blur:
            stages.append(_blur(options, draw(2, stream=Stream.BLUR)))
        stages += _POLICIES[options.policy](config, draw)
        per_view.append(stages)
    empty: Stage = (np.full(len(ids), NONE), np.zeros(len(ids)))
    length = max(map(len, per_view))
    padded = [stages + [empty] * (length - len(stages)) for stages in per_view]
    kinds, amounts = (
        np.stack([np.concatenate([stages[s][part] for stages in padded]) for s in range(length)])
        for part in (0, 1)
    )
    return OperationPlan(kinds, amounts.astype(np.float32))


def cutout_centres(ids: Indices, size: int, *, seed: int, epoch: int, view: int) -> Indices:
    """Row and column of the centre of each image's square, uniform over the pixels, (N, 2)."""
    draws = uniforms(seed, epoch, ids, view, 2, stream=Stream.CUTOUT)
    return (draws * size).astype(np.int64)


def cutout_masks(
    ids: Indices, config: ViewsConfig, view: int, *, seed: int, epoch: int
) -> NDArray[np.bool]:
    """The rows and the columns of a view that each image's square covers, (N, 2, image_size)."""
    side = config.of_view(view).cutout
    centres = cutout_centres(ids, config.image_size, seed=seed, epoch=epoch, view=view)
    starts, position = centres[..., None] - side // 2, np.arange(config.image_size)
    return (position >= starts) & (position < starts + side)


def _jitter(options: ViewConfig, draws: Floats) -> list[Stage]:
    """Four factors in a random order, as torchvision's ColorJitter."""
    largest = np.array(options.jitter)
    low = np.append(np.maximum(0, 1 - largest[:3]), -largest[3])
    high = np.append(1 + largest[:3], largest[3])
    active_draw, order_draws, factor_draws = np.split(draws, [1, 5], axis=1)
    factors = low + (high - low) * factor_draws
    order = order_draws.argsort(axis=1)
    active = (active_draw < options.jitter_probability) & (largest[order] > 0)
    kinds = np.where(active, _JITTER_KINDS[order], NONE)
    amounts = np.take_along_axis(factors, order, axis=1)
    return list(zip(kinds.T, amounts.T, strict=True))


def _grayscale(options: ViewConfig, draws: Floats) -> Stage:
    return np.where(draws < options.grayscale, NAMES.index("grayscale"), NONE), np.zeros(len(draws))


def _blur(options: ViewConfig, draws: Floats) -> Stage:
    """Standard deviations from 0.1 to 2 pixels, as in SimCLR."""
    active_draw, deviation_draw = draws.T
    kinds = np.where(active_draw < options.blur, NAMES.index("gaussian_blur"), NONE)
    return kinds, 0.1 + 1.9 * deviation_draw


def _randaugment(config: ViewsConfig, draw: Draw) -> list[Stage]:
    """One of 15 operations per stage, with probability 1/2 and normally distributed strength."""
    stages = []
    draws = draw(5 * config.randaugment_ops, stream=Stream.POLICY)
    for stage_draws in np.split(draws, config.randaugment_ops, axis=1):
        choice, applied_draw, sign_draw, radius, angle = stage_draws.T
        # The Box-Muller method makes normal numbers from uniform ones.
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        strength = config.randaugment_magnitude + config.randaugment_deviation * normal
        signs = np.where(sign_draw < 0.5, -1.0, 1.0)
        candidates = _randaugment_amounts(strength.clip(0, 10) / 10, signs)
        chosen = (choice * len(candidates)).astype(np.int64)
        kinds = np.array([NAMES.index(name) for name in candidates])[chosen]
        amounts = np.stack(list(candidates.values()))[chosen, np.arange(len(chosen))]
        stages.append((np.where(applied_draw < 0.5, kinds, NONE), amounts))
    return stages


def _randaugment_amounts(share: Floats, sign: Floats) -> dict[str, Floats]:
    """Amounts by operation at a share (0 to 1) of full strength, as in timm's first RandAugment."""
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


def _cifar10(_config: ViewsConfig, draw: Draw) -> list[Stage]:
    """One of 25 pairs of operations, each operation with its own probability."""
    draws = draw(5, stream=Stream.POLICY)
    kinds, probabilities, amounts = _cifar10_table()
    pair = (draws[:, 0] * len(kinds)).astype(np.int64)
    stages = []
    for i in (0, 1):
        applied = draws[:, 1 + i] < probabilities[pair, i]
        is_negative = draws[:, 3 + i] < 0.5
        stage_amounts = amounts[pair, i, is_negative.astype(np.int64)]
        stages.append((np.where(applied, kinds[pair, i], NONE), stage_amounts))
    return stages


@cache
def _cifar10_table() -> tuple[Indices, Floats, Floats]:
    """Operations, (25, 2), their probabilities, (25, 2), and their amounts, (25, 2, 2).

    The last axis of the amounts: positive and negative.
    """
    # This import takes a second, so runs without the policy do not import it.
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # noqa: PLC0415

    pairs = [
        [(_TORCHVISION_NAMES[name], probability, level) for name, probability, level in pair]
        for pair in AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    ]
    return (
        np.array([[NAMES.index(name) for name, _, _ in pair] for pair in pairs]),
        np.array([[probability for _, probability, _ in pair] for pair in pairs]),
        np.array(
            [[_cifar10_amounts(name, (level or 0) / 9) for name, _, level in p] for p in pairs]
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
    return 1 + 0.9 * share, 1 - 0.9 * share  # a factor; operations without an amount ignore it


_POLICIES: dict[str, Callable[[ViewsConfig, Draw], list[Stage]]] = {
    "none": lambda _config, _draw: [],
    "randaugment": _randaugment,
    "cifar10": _cifar10,
}
