"""Images that a network classifies wrongly with high confidence.

Axes: H x W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bcl_ray.report.figures.style import MUTED, TEXT_COLORS, set_title, shorten

COLUMNS = 8


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified image."""

    image: NDArray[np.uint8]
    """RGB pixels, (H, W, 3)."""
    true_name: str
    true_group: str
    predicted_name: str
    predicted_group: str
    confidence: float
    """Probability of the predicted class, in [0, 1]."""


def mistake_grid(mistakes: Sequence[Mistake]) -> Figure:
    """A grid of images with confidence, true class and predicted class.

    Class names have the colour of their shot group.

    Args:
        mistakes: At least one.
    """
    rows = math.ceil(len(mistakes) / COLUMNS)
    figure = Figure((1.62 * COLUMNS, 2.2 * rows + 0.45), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, mistake in zip(axes.flat, mistakes, strict=False):
        small = max(mistake.image.shape[:2]) < 100
        axis.imshow(mistake.image, interpolation="nearest" if small else "antialiased")
        axis.set_title(f"{100 * mistake.confidence:.0f} %", fontsize=9, color=MUTED, pad=3)
        for points, name, group in (
            (-5, shorten(mistake.true_name), mistake.true_group),
            (-18, f"→ {shorten(mistake.predicted_name, 16)}", mistake.predicted_group),
        ):
            options = {"ha": "center", "va": "top", "fontsize": 9, "color": TEXT_COLORS[group]}
            # Points below the image, whatever its height.
            below = {"xytext": (0, points), "textcoords": "offset points"}
            axis.annotate(name, (0.5, 0), xycoords="axes fraction", **below, **options)
    group = mistakes[0].true_group
    title = f"Most confident mistakes on {group}-shot classes"
    set_title(figure, f"{title}: confidence, true class → predicted class")
    return figure
