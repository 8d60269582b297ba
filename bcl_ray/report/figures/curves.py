"""Accuracy and geometry over the epochs of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bcl_ray.experiment.metric_names import accuracy
from bcl_ray.report.figures.style import (
    ALL_COLOR,
    GROUP_COLORS,
    MUTED,
    PAIR_COLORS,
    TEXT_COLORS,
    add_legend,
    label_axes,
    make_figure,
    set_title,
    use_integer_ticks,
    use_log_scale,
)

History = Sequence[Mapping[str, float]]
Space = Literal["feature", "embedding"]


class SpaceMetrics(NamedTuple):
    """Where the geometry metrics of a space are, and how figures name it."""

    evaluation: str
    """Beginning of the metrics' names for evaluation images."""
    training: str
    """Beginning of the metrics' names for training images."""
    title: str
    distance: str
    """Name of the metric of distances to the class means."""
    directions: str
    """What this distance is measured from."""


SPACES: dict[Space, SpaceMetrics] = {
    "feature": SpaceMetrics(
        "geometry/features",
        "geometry/train_features",
        "contrastive features",
        "prototype_distance",
        "prototypes",
    ),
    "embedding": SpaceMetrics(
        "geometry",
        "geometry/train",
        "embeddings",
        "classifier_distance",
        "classifier weights",
    ),
}
MAX_MARKED = 25  # marks at more epochs would cover each other


def accuracy_over_epochs(history: History) -> Figure:
    """Accuracy of all, many-, medium- and few-shot classes at each evaluated epoch.

    Args:
        history: One record of metrics per epoch.
    """
    figure, axes = make_figure(9, 4.4)
    axis = axes[0, 0]
    ends = []
    for group, color in GROUP_COLORS.items():
        epochs, values = _series(history, accuracy(group))
        if not epochs:
            continue
        style: dict[str, Any] = {"linestyle": "--" if group == "all" else "-", "linewidth": 2.2}
        axis.plot(epochs, values, color=color, **_marks(epochs), **style)
        ends.append((values[-1], f"{group} {values[-1]:.1f}", TEXT_COLORS[group]))
    _label_ends(axis, ends)
    axis.set_ylim(0, 102)
    use_integer_ticks(axis, 8)
    label_axes(axis, "Accuracy over epochs, mean over classes", "Epoch", "Accuracy (%)")
    return figure


def geometry_over_epochs(history: History, classes: int, *, space: Space) -> Figure:
    """The geometry metrics of a space at each evaluated epoch.

    Solid lines show evaluation images, dashed lines training images. `bcl_ray.method.geometry`
    defines the metrics.

    Args:
        history: One record of metrics per epoch.
        classes: C, the number of classes in the sample; the cosines of its simplex are -1/(C - 1).
        space: The contrastive features or the embeddings.
    """
    metrics = SPACES[space]
    figure, axes = make_figure(13, 7.2, 2, 3)
    _cosines(axes[0, 0], history, metrics, classes)
    panels = {
        "nc1": ("Variability within / between classes (NC1)", "tr(S_W S_B⁺) / C"),
        metrics.distance: (f"Class means to {metrics.directions} (NC3)", "Distance (0 to 2)"),
        "alignment": ("Alignment: images of one class", "Mean squared distance"),
        "uniformity": ("Uniformity: all images", "log mean exp(−2 distance²)"),
        "maximal_angle": ("Deviation from maximal angles (NC2)", "Mean |cosine + 1/(C−1)|"),
    }
    for axis, (name, (title, unit)) in zip(axes.flat[1:], panels.items(), strict=True):
        for group, color in GROUP_COLORS.items():
            metric = name if group == "all" else f"{name}_{group}"
            _evaluation_and_training(axis, history, metrics, metric, color=color)
        label_axes(axis, title, y=unit)
    nc1 = axes[0, 1]
    values = [float(y) for line in nc1.lines for y in np.asarray(line.get_ydata())]
    if values:
        use_log_scale(nc1.yaxis, min(values), max(values))
    for axis in axes.flat:
        use_integer_ticks(axis, 8)
    for axis in axes[1]:
        axis.set_xlabel("Epoch", fontsize=11)
    set_title(figure, f"Geometry of {metrics.title} over epochs")
    _add_figure_legend(figure)
    return figure


def _cosines(axis: Axes, history: History, metrics: SpaceMetrics, classes: int) -> None:
    for pair, color in PAIR_COLORS.items():
        name = f"{pair.replace('-', '_')}_cosine"
        _evaluation_and_training(axis, history, metrics, name, label=pair, color=color)
    ideal = -1 / (classes - 1)
    style: dict[str, Any] = {"color": ALL_COLOR, "linewidth": 1, "linestyle": ":"}
    axis.axhline(ideal, label=f"simplex {ideal:.2g}", **style)
    label_axes(axis, "Cosine similarity of class means", y="Mean cosine similarity")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    add_legend(axis, loc="upper left", ncols=2)


def _add_figure_legend(figure: Figure) -> None:
    lines = [Line2D([], [], color=color, lw=2, label=g) for g, color in GROUP_COLORS.items()]
    lines += [
        Line2D([], [], color=MUTED, lw=2, label="evaluation images"),
        Line2D([], [], color=MUTED, lw=2, linestyle="--", label="training images"),
    ]
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines), frameon=False)


def _evaluation_and_training(
    axis: Axes, history: History, metrics: SpaceMetrics, name: str, **options: Any
) -> None:
    for prefix, style in ((metrics.evaluation, "-"), (metrics.training, "--")):
        epochs, values = _series(history, f"{prefix}/{name}")
        if epochs:
            axis.plot(epochs, values, ls=style, lw=1.8, **_marks(epochs), **options)
            options.pop("label", None)  # one legend entry for both lines


def _series(history: History, name: str) -> tuple[list[float], list[float]]:
    """Epochs at which a metric was measured, counted from 1, and its values."""
    points = [(record["epoch"] + 1, record[name]) for record in history if name in record]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _marks(epochs: Sequence[float]) -> dict[str, Any]:
    return {"marker": "o", "markersize": 5 if len(epochs) <= MAX_MARKED else 0}


def _label_ends(axis: Axes, ends: Sequence[tuple[float, str, str]], apart: float = 6.0) -> None:
    """Write text at the right end of each line, moved apart where texts would overlap.

    Args:
        axis: Axes whose y axis ends at about 100.
        ends: Height, text and colour of each end.
        apart: Smallest distance between two texts.
    """
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
