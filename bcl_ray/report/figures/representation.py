"""Where a network puts the classes: cosines of all pairs of class means.

Axes: C classes of the sample, D width.
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
    GROUP_COLORS,
    MUTED,
    canvas,
    legend,
    short,
    titled,
)

NAMED = 20  # classes whose names fit beside a matrix


def class_cosines(
    means: NDArray[np.float32],
    class_counts: ArrayLike,
    class_names: Sequence[str],
    *,
    of: str,
) -> Figure:
    """The matrix of cosines between class means around their centre, and their histogram.

    Classes lie from the largest to the smallest. On a simplex all cosines are -1/(C - 1).

    Args:
        means: of each class, (C, D).
        class_counts: their training images, (C,).
        class_names: (C,).
        of: what the means are of, for the title.
    """
    counts = np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    centred = means[order].astype(float)
    centred -= centred.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosines, counts = unit @ unit.T, counts[order]
    figure, axes = canvas(13, 5.6, 1, 2, width_ratios=[1.15, 1])
    _matrix(figure, axes[0, 0], cosines, counts, [class_names[k] for k in order])
    titled(axes[0, 0], f"cosines of class means ({of})")
    _histogram(axes[0, 1], cosines, counts)
    return figure


def _matrix(
    figure: Figure,
    axis: Axes,
    cosines: NDArray[np.float64],
    counts: NDArray[np.int64],
    names: Sequence[str],
) -> None:
    off = cosines[~np.eye(len(cosines), dtype=bool)]
    limit = float(np.clip(np.quantile(np.abs(off), 0.99), 0.05, 1)) if off.size else 1.0
    shown = cosines.copy()
    np.fill_diagonal(shown, np.nan)  # all 1: they would only take the scale
    image = axis.imshow(shown, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, shrink=0.85, extend="both")
    bar.set_label("cosine", fontsize=11)
    bar.outline.set_visible(False)
    axis.grid(visible=False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.set_facecolor(FAINT)
    if len(names) <= NAMED:
        labels = [short(name, 14) for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=90)
        axis.set_yticks(range(len(names)), labels)
    else:
        axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0, pad=9)
    width = len(names)
    strip = 0.018 * width
    for group, members in shot_groups(counts).items():
        first, size = members[0] - 0.5, len(members)
        for corner, side in (
            ((first, width - 0.5), (size, strip)),
            ((-0.5 - strip, first), (strip, size)),
        ):
            axis.add_patch(
                Rectangle(corner, *side, color=GROUP_COLORS[group], clip_on=False, linewidth=0)
            )
        if len(names) > NAMED:
            middle = first + size / 2
            axis.text(middle, width - 0.5 + 2 * strip, group, ha="center", va="top", fontsize=10)
            axis.text(-0.5 - 1.6 * strip, middle, group, ha="right", va="center", fontsize=10)


def _histogram(axis: Axes, cosines: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    groups = shot_groups(counts)
    above = np.triu(np.ones_like(cosines, dtype=bool), 1)
    every = cosines[above]
    bins = int(np.clip(1.5 * np.sqrt(every.size), 8, 40))
    edges = np.linspace(*_range(every), bins + 1).tolist()
    axis.hist(every, edges, weights=_shares(every), color=FAINT, label=f"all {every.size:,} pairs")
    pairs = (
        ("many", "many", "head-head"),
        ("many", "few", "head-tail"),
        ("few", "few", "tail-tail"),
    )
    for first, second, name in pairs:
        if first not in groups or second not in groups:
            continue
        block = np.zeros_like(above)
        block[np.ix_(groups[first], groups[second])] = True
        some = cosines[block & above]
        if not some.size:
            continue
        color = GROUP_COLORS[first] if first == second else MUTED
        axis.hist(
            some,
            edges,
            weights=_shares(some),
            histtype="step",
            linewidth=2,
            color=color,
            label=f"{name}: mean {some.mean():+.3f}",
        )
    ideal = -1 / (len(cosines) - 1)
    axis.axvline(
        ideal, color=ALL_COLOR, linestyle=":", linewidth=1.8, label=f"simplex {ideal:+.3f}"
    )
    titled(axis, "all pairs of classes", "cosine", "pairs (%)")
    axis.set_ylim(top=1.45 * axis.get_ylim()[1])  # room for the legend
    legend(axis, loc="upper right", ncols=2)


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(values.size, 100 / max(values.size, 1))


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    if not values.size:
        return -1.0, 1.0
    low, high = values.min(), values.max()
    margin = max(0.05 * (high - low), 0.02)
    return max(-1.0, low - margin), min(1.0, high + margin)
