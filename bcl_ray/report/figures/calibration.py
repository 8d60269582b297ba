"""Accuracy by confidence: how far a network's probabilities can be trusted."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from bcl_ray.report.figures.style import ALL_COLOR, MUTED, add_legend, label_axes, make_figure

CALIBRATED_COLOR = "#2A9D8F"  # no shot group has it


def reliability(bins: ArrayLike, calibrated: ArrayLike | None, temperature: float) -> Figure:
    """Accuracy by confidence before and after calibration, and the distribution of confidence.

    Args:
        bins: Images, summed confidence and correct images of each bin, (bins, 3).
        calibrated: The same for softmax(logits / temperature); None if it is not known.
        temperature: The temperature that calibrates the network; > 0.
    """
    figure, axes = make_figure(6.4, 6.4, 2, 1, sharex=True, height_ratios=[2.6, 1])
    curve, histogram = axes[:, 0]
    curve.plot(
        [0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=":", label="perfect calibration"
    )
    _series(curve, histogram, "before", np.asarray(bins, dtype=float), color=ALL_COLOR)
    if calibrated is not None:
        name = f"after (temperature {temperature:.2f})"
        style = {"color": CALIBRATED_COLOR, "linestyle": "--"}
        _series(curve, histogram, name, np.asarray(calibrated, dtype=float), **style)
    curve.set(xlim=(0, 101), ylim=(-2, 102))
    histogram.set_ylim(bottom=0)
    label_axes(curve, "Accuracy by confidence, before and after calibration", y="Accuracy (%)")
    label_axes(histogram, "", "Confidence (%)", "Images (%)")
    add_legend(curve, loc="upper left")
    return figure


def _series(
    curve: Axes, histogram: Axes, name: str, bins: NDArray[np.float64], **style: Any
) -> None:
    images, confidence, correct = bins.T
    error = 100 * np.abs(correct - confidence).sum() / images.sum()
    filled = images > 0
    x, y = 100 * confidence[filled] / images[filled], 100 * correct[filled] / images[filled]
    curve.plot(x, y, label=f"{name}: calibration error {error:.1f} %", linewidth=1.8, **style)
    # Larger marks for bins with more images, whose accuracy is more certain.
    size = 15 + 300 * images[filled] / images.sum()
    curve.scatter(x, y, size, color=style["color"], alpha=0.75, linewidth=0, clip_on=False)
    edges = np.linspace(0, 100, len(images) + 1)
    histogram.stairs(100 * images / images.sum(), edges, linewidth=1.8, **style)
