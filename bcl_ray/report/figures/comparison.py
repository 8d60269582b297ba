"""Configurations side by side: accuracy by shot group, and over the epochs."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bcl_ray.report.figures.style import (
    ALL_COLOR,
    GROUP_COLORS,
    GROUP_MARKERS,
    MUTED,
    canvas,
    legend,
    titled,
)

# Paul Tol's bright scheme, for what is no shot group. https://personal.sron.nl/~pault/
LINES = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
COLORS = {"all": ALL_COLOR, **GROUP_COLORS}
MARKERS = {"all": "D", **GROUP_MARKERS}


@dataclass(frozen=True)
class Line:
    """A configuration in a comparison.

    Args:
        name: what it is called.
        accuracy: of each seed by group (all, many, medium, few), per cent.
        curves: accuracy over all classes of each seed by epoch, per cent.
    """

    name: str
    accuracy: Mapping[str, Sequence[float]]
    curves: Sequence[Mapping[int, float]]


def comparison(lines: Sequence[Line]) -> Figure:
    """Draw configurations, the first at the top; each mark is a mean, its bar covers all seeds."""
    height = max(3.4, 1.6 + 0.55 * len(lines))
    figure, axes = canvas(12.5, height, 1, 2, width_ratios=[3, 2])
    _groups(axes[0, 0], lines)
    _curves(axes[0, 1], lines)
    marks = axes[0, 0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower left", ncols=len(COLORS), frameon=False, fontsize=10)
    return figure


def _groups(axis: Axes, lines: Sequence[Line]) -> None:
    groups = [group for group in COLORS if any(group in line.accuracy for line in lines)]
    for place, group in enumerate(groups):
        offset = 0.14 * (place - (len(groups) - 1) / 2)
        for row, line in enumerate(lines):
            values = line.accuracy.get(group, ())
            if len(values):
                axis.errorbar(
                    np.mean(values),
                    row + offset,
                    xerr=[[np.mean(values) - min(values)], [max(values) - np.mean(values)]],
                    color=COLORS[group],
                    marker=MARKERS[group],
                    markersize=7,
                    linewidth=1.5,
                    label=group if row == 0 else None,
                )
    axis.set_yticks(range(len(lines)), [_wrapped(line.name, 40) + _seeds(line) for line in lines])
    axis.set_ylim(len(lines) - 0.5, -0.5)
    several = any(len(line.curves) > 1 for line in lines)
    title = "accuracy by shot group" + (": mean and range of seeds" if several else "")
    titled(axis, title, "%", "")


def _seeds(line: Line) -> str:
    return f"  ({len(line.curves)} seeds)" if len(line.curves) > 1 else ""


def _wrapped(name: str, characters: int) -> str:
    return textwrap.fill(name, characters, max_lines=3, placeholder=" …")


def _curves(axis: Axes, lines: Sequence[Line]) -> None:
    for number, line in reversed(list(enumerate(lines))):
        color = LINES[number] if number < len(LINES) else MUTED
        epochs = sorted({epoch for curve in line.curves for epoch in curve})
        values = [[curve[epoch] for curve in line.curves if epoch in curve] for epoch in epochs]
        shown = [epoch + 1 for epoch in epochs]
        label = _wrapped(line.name, 30) if number < len(LINES) else None
        marker = "o" if len(epochs) == 1 else None
        axis.plot(shown, [np.mean(v) for v in values], color=color, label=label, marker=marker)
        axis.fill_between(
            shown, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, lw=0
        )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    titled(axis, "accuracy over all classes", "epoch", "%")
    handles, labels = axis.get_legend_handles_labels()
    legend(axis, handles=handles[::-1], labels=labels[::-1], loc="lower right")
