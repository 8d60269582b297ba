"""Cosine similarities of all pairs of class means.

Axes: C classes of the sample, D width of the vectors.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from bcl_ray.data.longtail import shot_groups
from bcl_ray.report.figures.style import (
    ALL_COLOR,
    FAINT,
    PAIR_COLORS,
    SHOT_COLORS,
    add_legend,
    label_axes,
    make_figure,
    shorten,
)

MAX_NAMED = 20  # the names of more classes do not fit beside a matrix
PAIRS = {"head-head": ("many", "many"), "head-tail": ("many", "few"), "tail-tail": ("few", "few")}


def class_cosines(
    means: NDArray[np.float32],
    class_counts: ArrayLike,
    class_names: Sequence[str],
    *,
    vectors: str,
) -> Figure:
    """The matrix of cosine similarities between centred class means, and their distribution.

    Classes are in the order of their training images, most first. In a regular simplex, all
    cosine similarities are -1/(C - 1).

    Args:
        means: Mean vector of each class, (C, D).
        class_counts: Training images of each class, (C,).
        class_names: Name of each class, (C,).
        vectors: What the means are of, for the title.
    """
    counts = np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    centred = means[order].astype(float)
    centred -= centred.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosines, counts = unit @ unit.T, counts[order]
    figure, axes = make_figure(13, 5.6, 1, 2, width_ratios=[1.15, 1])
    _draw_matrix(figure, axes[0, 0], cosines, [shorten(class_names[k], 14) for k in order])
    _mark_groups(axes[0, 0], counts)
    label_axes(axes[0, 0], f"Cosine similarity of class means: {vectors}")
    _draw_distribution(axes[0, 1], cosines, counts)
    return figure


def _draw_matrix(
    figure: Figure, axis: Axes, cosines: NDArray[np.float64], names: Sequence[str]
) -> None:
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    limit = float(np.clip(np.quantile(np.abs(others), 0.99), 0.05, 1)) if others.size else 1.0
    shown = cosines.copy()
    np.fill_diagonal(shown, np.nan)  # always 1
    image = axis.imshow(shown, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, shrink=0.85, extend="both")
    bar.set_label("Cosine similarity", fontsize=11)
    bar.outline.set_visible(False)
    axis.grid(visible=False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.set_facecolor(FAINT)
    if len(names) <= MAX_NAMED:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    else:
        axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0, pad=9)


def _mark_groups(axis: Axes, counts: NDArray[np.int64]) -> None:
    """Draw strips in the colours of the shot groups along the left and lower side of a matrix."""
    end = len(counts) - 0.5
    strip = 0.018 * len(counts)
    for group, members in shot_groups(counts).items():
        first, size = members[0] - 0.5, len(members)
        below, beside = (first, end), (-0.5 - strip, first)
        for corner, (width, height) in ((below, (size, strip)), (beside, (strip, size))):
            color = SHOT_COLORS[group]
            patch = Rectangle(corner, width, height, color=color, clip_on=False, linewidth=0)
            axis.add_patch(patch)
        if len(counts) > MAX_NAMED:
            middle = first + size / 2
            axis.text(middle, end + 2 * strip, group, ha="center", va="top", fontsize=10)
            axis.text(-0.5 - 1.6 * strip, middle, group, ha="right", va="center", fontsize=10)


def _draw_distribution(axis: Axes, cosines: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    upper = np.triu(np.ones_like(cosines, dtype=bool), 1)
    every = cosines[upper]
    bins = int(np.clip(1.5 * np.sqrt(every.size), 8, 40))
    edges = np.linspace(*_limits(every), bins + 1).tolist()
    label = f"all {every.size:,} pairs"
    axis.hist(every, edges, weights=_percentages(every), color=FAINT, label=label)
    for name, values in _cosines_by_pair(cosines, upper, counts).items():
        axis.hist(
            values,
            edges,
            weights=_percentages(values),
            histtype="step",
            linewidth=2,
            color=PAIR_COLORS[name],
            label=f"{name}: mean {values.mean():+.3f}",
        )
    ideal = -1 / (len(cosines) - 1)
    axis.axvline(
        ideal, color=ALL_COLOR, linestyle=":", linewidth=1.8, label=f"simplex {ideal:+.3f}"
    )
    title = "Distribution over pairs of classes"
    label_axes(axis, title, "Cosine similarity of class means", "Pairs of classes (%)")
    axis.set_ylim(top=1.45 * axis.get_ylim()[1])  # room for the legend
    # Opaque, because the line of the simplex may run behind it.
    add_legend(axis, loc="upper right", ncols=2, frameon=True, edgecolor="none", framealpha=1)


def _cosines_by_pair(
    cosines: NDArray[np.float64], upper: NDArray[np.bool_], counts: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The cosine similarities of each kind of pair that exists."""
    groups = shot_groups(counts)
    by_pair = {}
    for name, (first, second) in PAIRS.items():
        block = np.zeros_like(upper)
        block[np.ix_(groups.get(first, []), groups.get(second, []))] = True
        by_pair[name] = cosines[block & upper]
    return {name: values for name, values in by_pair.items() if values.size}


def _percentages(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a histogram whose bars sum to 100."""
    return np.full(values.size, 100 / max(values.size, 1))


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    if not values.size:
        return -1.0, 1.0
    low, high = values.min(), values.max()
    margin = max(0.05 * (high - low), 0.02)
    return max(-1.0, low - margin), min(1.0, high + margin)
