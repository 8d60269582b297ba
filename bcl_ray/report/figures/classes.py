"""The accuracy of each class, beside its number of training images.

Axes: K classes.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike, NDArray

from bcl_ray.data.longtail import shot_groups
from bcl_ray.report.figures.style import (
    ALL_COLOR,
    GROUP_MARKERS,
    SHOT_COLORS,
    add_legend,
    label_axes,
    make_figure,
    set_title,
    shorten,
)

MAX_NAMED = 30  # the names of more classes do not fit below an axis
MAX_SEPARATE = 200  # with more classes, single points say little, and their trend is drawn
TREND_POINTS = 40


def accuracy_by_class(
    accuracy: ArrayLike, class_counts: ArrayLike, class_names: Sequence[str]
) -> Figure:
    """Training images and accuracy of each class, from most to fewest training images.

    Args:
        accuracy: Accuracy of each class in per cent, (K,); NaN for a class without test images.
        class_counts: Training images of each class, (K,).
        class_names: Name of each class, (K,).
    """
    accuracy, counts = np.asarray(accuracy, dtype=float), np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    figure, axes = make_figure(9, 6, 2, 1, sharex=True, height_ratios=[1, 2.2])
    set_title(figure, "Accuracy of each class by number of training images")
    _training_images(axes[0, 0], counts, order)
    _accuracies(axes[1, 0], accuracy, counts, order)
    if len(order) <= MAX_NAMED:
        _name_classes(axes[1, 0], [shorten(class_names[k]) for k in order])
    return figure


def _training_images(axis: Axes, counts: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    width = 0.9 if len(order) <= MAX_NAMED else 1
    for group, members in shot_groups(counts).items():
        positions = np.flatnonzero(np.isin(order, members))
        axis.bar(positions, counts[order[positions]], width=width, color=SHOT_COLORS[group])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, len(order) - 0.5)
    axis.grid(visible=False, axis="x")
    label_axes(axis, "", y="Training images")


def _accuracies(
    axis: Axes,
    accuracy: NDArray[np.float64],
    counts: NDArray[np.int64],
    order: NDArray[np.int64],
) -> None:
    size = float(np.clip(3000 / len(order), 4, 60))
    for group, members in shot_groups(counts).items():
        positions = np.flatnonzero(np.isin(order, members))
        color, mean = SHOT_COLORS[group], np.nanmean(accuracy[members])
        axis.scatter(
            positions,
            accuracy[order[positions]],
            s=size,
            color=color,
            marker=GROUP_MARKERS[group],
            alpha=1 if len(order) <= MAX_SEPARATE else 0.5,
            linewidth=0,
            label=f"{group} {mean:.1f} %",
        )
        ends = positions[0] - 0.5, positions[-1] + 0.5
        axis.hlines(mean, *ends, color=color, linewidth=6, alpha=0.35, zorder=1)
    label = "Classes, from most to fewest training images"
    if len(order) > MAX_SEPARATE:
        parts = np.array_split(np.arange(len(order)), TREND_POINTS)
        means = [np.nanmean(accuracy[order[part]]) for part in parts]
        axis.plot([part.mean() for part in parts], means, color=ALL_COLOR, linewidth=1.5)
        label += f" (line: mean of every {len(parts[0])} classes)"
    axis.set_ylim(-4, 104)
    axis.grid(visible=False, axis="x")
    label_axes(axis, f"Mean over classes: {np.nanmean(accuracy):.1f} %", label, "Accuracy (%)")
    add_legend(
        axis,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(SHOT_COLORS),
        handletextpad=0.2,
        markerscale=max(1, 4 / size**0.5),
    )


def _name_classes(axis: Axes, names: Sequence[str]) -> None:
    fits = sum(len(name) + 2 for name in names) <= 95  # side by side below an axis of 9 inches
    axis.set_xticks(range(len(names)), names, rotation=0 if fits else 60)
    if not fits:
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
