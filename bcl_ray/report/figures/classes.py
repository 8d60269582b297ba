"""Accuracy by class, who is taken for whom, how far confidence can be trusted.

Axes: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike, NDArray

from bcl_ray.data.longtail import shot_groups
from bcl_ray.report.figures.style import (
    ALL_COLOR,
    CALIBRATED_COLOR,
    FAINT,
    GROUP_COLORS,
    GROUP_MARKERS,
    MUTED,
    canvas,
    legend,
    short,
    titled,
)

NAMED = 30  # classes whose names fit below an axis
CROWDED, TREND = 200, 40  # classes beyond which there is a trend, and its points
SWALLOWERS = 10  # classes that are named as taking the tail's images
CORRECT_COLOR = "#BBBBBB"


def accuracy_by_class(
    accuracy: ArrayLike, class_counts: ArrayLike, class_names: Sequence[str]
) -> Figure:
    """Training images and accuracy of each class, from the largest class to the smallest.

    Args:
        accuracy: of each class in per cent, (K,), NaN where there is no image.
        class_counts: training images by class, (K,).
        class_names: (K,).
    """
    accuracy, counts = np.asarray(accuracy, dtype=float), np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    named = len(order) <= NAMED
    figure, axes = canvas(9, 6, 2, 1, sharex=True, height_ratios=[1, 2.2])
    above, below = axes[:, 0]
    size = float(np.clip(3000 / len(order), 4, 60))
    for group, members in shot_groups(counts).items():
        places = np.flatnonzero(np.isin(order, members))
        color, mean = GROUP_COLORS[group], np.nanmean(accuracy[members])
        width = 0.9 if named else 1
        above.bar(places, counts[order[places]], width=width, color=color)
        below.scatter(
            places,
            accuracy[order[places]],
            s=size,
            color=color,
            marker=GROUP_MARKERS[group],
            alpha=1 if len(order) <= CROWDED else 0.5,
            linewidth=0,
            label=f"{group} {mean:.1f} %",
        )
        ends = places[0] - 0.5, places[-1] + 0.5
        below.hlines(mean, *ends, color=color, linewidth=6, alpha=0.35, zorder=1)
    if len(order) > CROWDED:  # single classes have few images and few values: show their trend
        parts = np.array_split(np.arange(len(order)), TREND)
        means = [np.nanmean(accuracy[order[part]]) for part in parts]
        middles = [part.mean() for part in parts]
        below.plot(middles, means, color=ALL_COLOR, linewidth=1.5)
    above.set_yscale("log")
    above.yaxis.set_major_formatter("{x:,.0f}")
    above.yaxis.set_minor_locator(NullLocator())
    above.tick_params(axis="x", length=0)
    above.set_xlim(-0.5, len(order) - 0.5)
    below.set_ylim(-4, 104)
    titled(above, "training images per class", y="images")
    where = "" if named else "classes, from the largest to the smallest"
    where += "; the line is their trend" if len(order) > CROWDED else ""
    titled(
        below, f"accuracy per class, {np.nanmean(accuracy):.1f} % on average", where, "accuracy (%)"
    )
    if named:
        labels = [short(class_names[k]) for k in order]
        below.set_xticks(range(len(order)), labels, rotation=0 if _fit(labels) else 60)
        if not _fit(labels):
            for label in below.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    below.grid(visible=False, axis="x")
    above.grid(visible=False, axis="x")
    legend(
        below,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=4,
        handletextpad=0.2,
        markerscale=max(1, 4 / size**0.5),
    )
    return figure


def confusion(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    class_counts: ArrayLike,
    class_names: Sequence[str],
) -> Figure:
    """What becomes of each group's images, and which classes take those of the tail.

    Args:
        labels: of the images, (N,).
        predicted: their predicted classes, (N,).
        class_counts: training images by class, (K,).
        class_names: (K,).
    """
    groups = shot_groups(class_counts)
    figure, axes = canvas(12, 4.6, 1, 2, width_ratios=[1, 1.15])
    _fates(axes[0, 0], labels, predicted, groups)
    _swallowers(axes[0, 1], labels, predicted, np.asarray(class_counts), class_names)
    return figure


def reliability(bins: ArrayLike, calibrated: ArrayLike | None, temperature: float) -> Figure:
    """Accuracy against confidence, before and after calibration, and how often each occurs.

    Args:
        bins: images, summed confidence and correct images of each bin, (bins, 3).
        calibrated: the same of softmax(logits / temperature); None where it is not known.
        temperature: what calibrates.
    """
    figure, axes = canvas(6.4, 6.4, 2, 1, sharex=True, height_ratios=[2.6, 1])
    above, below = axes[:, 0]
    above.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=":", label="perfect")
    series: list[tuple[str, ArrayLike, dict[str, Any]]] = [
        ("as trained", bins, {"color": ALL_COLOR, "linestyle": "-"})
    ]
    if calibrated is not None:
        name = f"calibrated (temperature {temperature:.2f})"
        options = {"color": CALIBRATED_COLOR, "linestyle": "--"}
        series.append((name, calibrated, options))
    for name, counted, options in series:
        images, confidence, correct = np.asarray(counted, dtype=float).T
        some = images > 0
        error = 100 * np.abs(correct - confidence).sum() / images.sum()
        x, y = 100 * confidence[some] / images[some], 100 * correct[some] / images[some]
        above.plot(x, y, label=f"{name}: error {error:.1f} %", linewidth=1.8, **options)
        # A bin's size is how far it can be trusted itself.
        size = 15 + 300 * images[some] / images.sum()
        above.scatter(x, y, size, color=options["color"], alpha=0.75, linewidth=0, clip_on=False)
        edges = np.linspace(0, 100, len(images) + 1)
        below.stairs(100 * images / images.sum(), edges, linewidth=1.8, **options)
    above.set(xlim=(0, 101), ylim=(-2, 102))
    below.set_ylim(bottom=0)
    titled(above, "can confidence be trusted?", y="accuracy (%)")
    titled(below, "", "confidence (%)", "images (%)")
    legend(above, loc="upper left")
    return figure


def _fates(
    axis: Axes,
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    groups: Mapping[str, NDArray[np.int64]],
) -> None:
    """Per group, the share of images that are right, or taken for a class of each group."""
    rows = list(groups)[::-1]
    left = np.zeros(len(rows))
    fates: list[tuple[str, str, list[float]]] = [("right", CORRECT_COLOR, [])]
    fates += [(f"taken for {name}", GROUP_COLORS[name], []) for name in groups]
    for name in rows:
        inside = np.isin(labels, groups[name])
        hit = predicted[inside] == labels[inside]
        fates[0][2].append(100 * hit.mean() if inside.any() else 0)
        for (_, _, shares), members in zip(fates[1:], groups.values(), strict=True):
            wrong = np.isin(predicted[inside], members) & ~hit
            shares.append(100 * wrong.mean() if inside.any() else 0)
    for label, color, shares in fates:
        axis.barh(rows, shares, left=left, color=color, label=label, height=0.62)
        for row, share in enumerate(shares):
            if share >= 5:
                dark = color in (CORRECT_COLOR, GROUP_COLORS["medium"])
                axis.text(
                    left[row] + share / 2,
                    row,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    color=ALL_COLOR if dark else "white",
                    fontsize=10,
                )
        left += shares
    axis.set_xlim(0, 100)
    axis.grid(visible=False, axis="y")
    titled(axis, "what becomes of each group's images", "images (%)", "true group")
    legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _swallowers(
    axis: Axes,
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    counts: NDArray[np.int64],
    class_names: Sequence[str],
) -> None:
    """The classes that most mistakes on the tail are taken for, and whose images they take."""
    groups = shot_groups(counts)
    tail = list(groups)[-1]
    wrong = np.isin(labels, groups[tail]) & (predicted != labels)
    taken = np.bincount(predicted[wrong], minlength=len(counts))
    most = [k for k in np.argsort(-taken, kind="stable")[:SWALLOWERS] if taken[k]][::-1]
    group_of = {k: name for name, members in groups.items() for k in members.tolist()}
    title = f"who swallows the tail ({tail}-shot classes): {wrong.sum():,} mistakes"
    titled(axis, title, "share of these mistakes (%)", "class (its training images)")
    if not most:
        axis.text(0.5, 0.5, "no mistakes", ha="center", transform=axis.transAxes, color=MUTED)
        axis.set(xticks=[], yticks=[])
        return
    shares = 100 * taken[most] / wrong.sum()
    names = [f"{short(class_names[k])} ({counts[k]:,})" for k in most]
    axis.barh(range(len(most)), shares, color=[GROUP_COLORS[group_of[k]] for k in most])
    axis.set_yticks(range(len(most)), names)
    axis.set_xlim(0, 1.7 * shares.max())
    axis.grid(visible=False, axis="y")
    for row, k in enumerate(most):
        victims = np.bincount(labels[wrong & (predicted == k)], minlength=len(counts))
        first = np.argsort(-victims, kind="stable")[:2]
        text = ", ".join(f"{short(class_names[v], 14)} ({victims[v]})" for v in first if victims[v])
        axis.text(shares[row] + 0.01 * shares.max(), row, f" from {text}", va="center", fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.axvline(0, color=FAINT)


def _fit(labels: Sequence[str]) -> bool:
    """Whether labels fit side by side below an axis of 9 inches."""
    return sum(len(label) + 2 for label in labels) <= 95
