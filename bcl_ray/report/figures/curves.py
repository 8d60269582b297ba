"""How a run went: accuracy by group and geometry, epoch by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bcl_ray.report.figures.style import (
    ALL_COLOR,
    GROUP_COLORS,
    MUTED,
    TEXT_COLORS,
    canvas,
    legend,
    logarithmic,
    titled,
)

History = Sequence[Mapping[str, float]]

COLORS = {"all": ALL_COLOR, **GROUP_COLORS}
PAIRS = {
    "head_head": ("head-head", GROUP_COLORS["many"]),
    "head_tail": ("head-tail", MUTED),
    "tail_tail": ("tail-tail", GROUP_COLORS["few"]),
}


def accuracy_over_epochs(history: History) -> Figure:
    """Accuracy of all, many, medium and few at the epochs that were evaluated.

    Args:
        history: a record of metrics per epoch.
    """
    figure, axes = canvas(9, 4.4)
    axis = axes[0, 0]
    ends = []
    for group, color in COLORS.items():
        x, y = _series(history, f"accuracy/{group}")
        if not x:
            continue
        style = {"linestyle": "--"} if group == "all" else {}
        axis.plot(x, y, color=color, linewidth=2.2, marker="o", markersize=_size(x), **style)
        ends.append((y[-1], f"{group} {y[-1]:.1f}", TEXT_COLORS.get(group, ALL_COLOR)))
    _end_labels(axis, ends)
    axis.set_ylim(0, 102)
    _epochs(axis)
    titled(axis, "accuracy over epochs", "epoch", "accuracy (%)")
    return figure


def geometry_over_epochs(history: History, classes: int, *, features: bool) -> Figure:
    """Neural collapse, cosines between class means, alignment and uniformity, epoch by epoch.

    Solid lines are of evaluation images, dashed ones of training images.

    Args:
        history: a record of metrics per epoch.
        classes: C, of the sample, whose simplex has cosines of -1/(C - 1).
        features: of the contrastive features instead of the embeddings.
    """
    where = ("geometry", "geometry/train")
    if features:
        where = ("geometry/features", "geometry/train_features")
    figure, axes = canvas(13, 7.2, 2, 3)
    for name, (label, color) in PAIRS.items():
        _both(axes[0, 0], history, where, f"{name}_cosine", label=label, color=color)
    ideal = -1 / (classes - 1)
    axes[0, 0].axhline(ideal, color=ALL_COLOR, linewidth=1, linestyle=":")
    axes[0, 0].plot(
        [], [], color=ALL_COLOR, linewidth=1, linestyle=":", label=f"simplex {ideal:.2g}"
    )
    titled(axes[0, 0], "cosines of class means", y="mean cosine")
    distance = "prototype_distance" if features else "classifier_distance"
    kind = "prototypes" if features else "classifier"
    panels = {
        "nc1": ("within over between classes (NC1)", "tr(S_W S_B⁺) / C"),
        distance: (f"{kind} against class means (NC3)", "distance, 0 to 2"),
        "alignment": ("alignment: images of a class", "mean squared distance"),
        "uniformity": ("uniformity: all images", "log mean kernel"),
        "maximal_angle": ("maximal angles (NC2)", "mean |cos + 1/(C−1)|"),
    }
    for axis, (name, (title, unit)) in zip(axes.flat[1:], panels.items(), strict=True):
        for group, color in COLORS.items():
            metric = name if group == "all" else f"{name}_{group}"
            _both(axis, history, where, metric, color=color)
        titled(axis, title, y=unit)
    values = [float(y) for line in axes[0, 1].lines for y in np.asarray(line.get_ydata())]
    if values:
        logarithmic(axes[0, 1].yaxis, min(values), max(values))
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    for axis in axes.flat:
        _epochs(axis)
    for axis in axes[1]:
        axis.set_xlabel("epoch", fontsize=11)
    legend(axes[0, 0], loc="upper left", ncols=2)
    _legend(figure, features=features)
    return figure


def _legend(figure: Figure, *, features: bool) -> None:
    lines = [Line2D([], [], color=color, linewidth=2, label=g) for g, color in COLORS.items()]
    lines += [
        Line2D([], [], color=MUTED, linewidth=2, label="evaluation images"),
        Line2D([], [], color=MUTED, linewidth=2, linestyle="--", label="training images"),
    ]
    what = "contrastive features" if features else "embeddings (backbone output)"
    figure.suptitle(f"geometry of the {what}", x=0.01, ha="left", fontsize=13)
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines), frameon=False)


def _both(axis: Axes, history: History, where: tuple[str, str], name: str, **options: Any) -> None:
    """A metric of evaluation images, solid, and of training images, dashed."""
    for prefix, style in zip(where, ("-", "--"), strict=True):
        x, y = _series(history, f"{prefix}/{name}")
        if x:
            shape: dict[str, Any] = {"marker": "o", "markersize": _size(x), "linewidth": 1.8}
            axis.plot(x, y, linestyle=style, **shape, **options)
            options.pop("label", None)  # one entry for both


def _series(history: History, name: str) -> tuple[list[float], list[float]]:
    """Epochs, counted from 1, and values of a metric where it was measured."""
    found = [(record["epoch"] + 1, record[name]) for record in history if name in record]
    return [x for x, _ in found], [y for _, y in found]


def _size(x: Sequence[float]) -> float:
    return 5 if len(x) <= 25 else 0


def _epochs(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _end_labels(axis: Axes, ends: Sequence[tuple[float, str, str]], apart: float = 6.0) -> None:
    """Name each line at its end, moved apart where they would overlap."""
    order = sorted(ends)
    heights = np.array([y for y, _, _ in order])
    for _ in range(50):
        for i in range(1, len(heights)):
            gap = apart - (heights[i] - heights[i - 1])
            if gap > 0:
                heights[i - 1] -= gap / 2
                heights[i] += gap / 2
    for height, (_, text, color) in zip(heights, order, strict=True):
        axis.annotate(
            text,
            (1.01, height),
            xycoords=("axes fraction", "data"),
            color=color,
            va="center",
            fontsize=11,
            annotation_clip=False,
        )
