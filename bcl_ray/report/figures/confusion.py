"""Which classes images are mistaken for, by shot group.

Axes: N images, K classes.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from bcl_ray.data.longtail import group_names, shot_groups
from bcl_ray.report.figures.style import (
    ALL_COLOR,
    FAINT,
    MUTED,
    SHOT_COLORS,
    add_legend,
    label_axes,
    make_figure,
    shorten,
)

MAX_ABSORBING = 10  # classes that are named as predictions for the tail's images
CORRECT_COLOR = "#BBBBBB"
LIGHT_COLORS = (CORRECT_COLOR, SHOT_COLORS["medium"])  # with dark text on them


def confusion(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    class_counts: ArrayLike,
    class_names: Sequence[str],
) -> Figure:
    """Predictions for the images of each shot group, and the classes that the tail is taken for.

    Args:
        labels: Class of each image, (N,).
        predicted: Predicted class of each image, (N,).
        class_counts: Training images of each class, (K,).
        class_names: Name of each class, (K,).
    """
    figure, axes = make_figure(12, 4.6, 1, 2, width_ratios=[1, 1.15])
    counts = np.asarray(class_counts)
    _group_predictions(axes[0, 0], labels, predicted, counts)
    _absorbing_classes(axes[0, 1], labels, predicted, counts, class_names)
    return figure


def _group_predictions(
    axis: Axes,
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Per group, the share of correct images, and of mistakes by the group of the prediction."""
    groups = shot_groups(counts)
    rows = list(groups)[::-1]
    wrong = predicted != labels
    outcomes = [("correct", CORRECT_COLOR, ~wrong)]
    outcomes += [
        (f"mistaken for {name}-shot", SHOT_COLORS[name], wrong & np.isin(predicted, members))
        for name, members in groups.items()
    ]
    left = np.zeros(len(rows))
    for label, color, occurs in outcomes:
        of_group = [occurs[np.isin(labels, groups[name])] for name in rows]
        shares = [100 * images.mean() if len(images) else 0 for images in of_group]
        axis.barh(rows, shares, left=left, color=color, label=label, height=0.62)
        text_color = ALL_COLOR if color in LIGHT_COLORS else "white"
        for row, share in enumerate(shares):
            if share >= 5:
                position = (left[row] + share / 2, row)
                text = axis.text(*position, f"{share:.0f}", color=text_color, fontsize=10)
                text.set(ha="center", va="center")
        left += shares
    axis.set_xlim(0, 100)
    axis.grid(visible=False, axis="y")
    label_axes(axis, "Predictions for the images of each group", "Images (%)", "True group")
    add_legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _absorbing_classes(
    axis: Axes,
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    counts: NDArray[np.int64],
    class_names: Sequence[str],
) -> None:
    """The classes that most mistakes on the tail are predicted as, and their true classes."""
    groups = shot_groups(counts)
    tail = list(groups)[-1]
    wrong = np.isin(labels, groups[tail]) & (predicted != labels)
    title = f"Classes that absorb {tail}-shot mistakes ({wrong.sum():,} mistakes)"
    label_axes(axis, title, "Mistakes (%)", "Predicted class (training images)")
    predictions = np.bincount(predicted[wrong], minlength=len(counts))
    order = np.argsort(-predictions, kind="stable")[:MAX_ABSORBING]
    classes = order[predictions[order] > 0][::-1]
    if not len(classes):
        axis.text(0.5, 0.5, "no mistakes", ha="center", transform=axis.transAxes, color=MUTED)
        axis.set(xticks=[], yticks=[])
        return
    group_of = group_names(counts)
    shares = 100 * predictions[classes] / wrong.sum()
    axis.barh(range(len(classes)), shares, color=[SHOT_COLORS[group_of[k]] for k in classes])
    names = [f"{shorten(class_names[k])} ({counts[k]:,})" for k in classes]
    axis.set_yticks(range(len(classes)), names)
    axis.set_xlim(0, 1.7 * shares.max())
    axis.grid(visible=False, axis="y")
    for row, k in enumerate(classes):
        true = np.bincount(labels[wrong & (predicted == k)], minlength=len(counts))
        most = [j for j in np.argsort(-true, kind="stable")[:2] if true[j]]
        text = ", ".join(f"{shorten(class_names[j], 14)} ({true[j]})" for j in most)
        axis.text(shares[row] + 0.01 * shares.max(), row, f" from {text}", va="center", fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.axvline(0, color=FAINT)
