"""Images that a network is sure of, and wrong about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bcl_ray.report.figures.style import ALL_COLOR, MUTED, TEXT_COLORS, short

COLUMNS = 8


@dataclass(frozen=True)
class Mistake:
    """An image, (H, W, 3) uint8, what it is, and what it was taken for."""

    image: NDArray[np.uint8]
    true_name: str
    true_group: str
    predicted_name: str
    predicted_group: str
    confidence: float


def mistake_grid(mistakes: Sequence[Mistake]) -> Figure:
    """A grid of images, each with its confidence, its true class, and what it was taken for.

    Names have the colour of their class's group.
    """
    columns = min(COLUMNS, max(len(mistakes), 1))
    rows = math.ceil(len(mistakes) / columns)
    figure = Figure((1.62 * columns, 2.2 * rows + 0.45), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, mistake in zip(axes.flat, mistakes, strict=False):
        small = max(mistake.image.shape[:2]) < 100
        axis.imshow(mistake.image, interpolation="nearest" if small else "antialiased")
        axis.set_title(f"{100 * mistake.confidence:.0f} %", fontsize=9, color=MUTED, pad=3)
        for height, text, group in (
            (-0.05, short(mistake.true_name), mistake.true_group),
            (-0.19, f"→ {short(mistake.predicted_name, 16)}", mistake.predicted_group),
        ):
            color = TEXT_COLORS.get(group, ALL_COLOR)
            options = {"ha": "center", "va": "top", "fontsize": 9}
            axis.text(0.5, height, text, color=color, transform=axis.transAxes, **options)
    figure.suptitle(
        "the tail's most confident mistakes: confidence, true class → what it was taken for",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    return figure
