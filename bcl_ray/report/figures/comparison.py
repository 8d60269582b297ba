"""Configurations side by side: accuracy by shot group, and over epochs."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bcl_ray.report.figures.style import (
    GROUP_COLORS,
    GROUP_MARKERS,
    MUTED,
    add_legend,
    label_axes,
    make_figure,
    use_integer_ticks,
)

# Paul Tol's bright scheme, without the colours of shot groups. https://personal.sron.nl/~pault/
LINE_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")


@dataclass(frozen=True)
class Configuration:
    """Runs with equal options and different seeds."""

    name: str
    accuracy: Mapping[str, Sequence[float]]
    """Accuracy of each seed in per cent, by group: all, many, medium, few."""
    curves: Sequence[Mapping[int, float]]
    """For each seed, accuracy over all classes in per cent, by epoch from 0."""


def comparison(configurations: Sequence[Configuration]) -> Figure:
    """Mean and range over seeds of each configuration, the first one at the top."""
    height = max(3.4, 1.6 + 0.55 * len(configurations))
    figure, axes = make_figure(12.5, height, 1, 2, width_ratios=[3, 2])
    _groups(axes[0, 0], configurations)
    _curves(axes[0, 1], configurations)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    options = {"ncols": len(GROUP_COLORS), "frameon": False, "fontsize": 10}
    figure.legend(handles, labels, loc="outside lower left", **options)
    return figure


def _groups(axis: Axes, configurations: Sequence[Configuration]) -> None:
    groups = [g for g in GROUP_COLORS if any(g in c.accuracy for c in configurations)]
    for number, group in enumerate(groups):
        offset = 0.14 * (number - (len(groups) - 1) / 2)
        for row, configuration in enumerate(configurations):
            values = configuration.accuracy.get(group, ())
            if len(values):
                mean = np.mean(values)
                axis.errorbar(
                    mean,
                    row + offset,
                    xerr=[[mean - min(values)], [max(values) - mean]],
                    color=GROUP_COLORS[group],
                    marker=GROUP_MARKERS[group],
                    markersize=7,
                    linewidth=1.5,
                    label=group if row == 0 else None,
                )
    names = [_wrap(c.name, 40) + _seeds(c) for c in configurations]
    axis.set_yticks(range(len(configurations)), names)
    axis.set_ylim(len(configurations) - 0.5, -0.5)
    title = "Accuracy by shot group"
    if any(len(configuration.curves) > 1 for configuration in configurations):
        title += ": mean and range over seeds"
    label_axes(axis, title, "Accuracy (%)")


def _seeds(configuration: Configuration) -> str:
    seeds = len(configuration.curves)
    return f"  ({seeds} seeds)" if seeds > 1 else ""


def _wrap(name: str, characters: int) -> str:
    return textwrap.fill(name, characters, max_lines=3, placeholder=" …")


def _curves(axis: Axes, configurations: Sequence[Configuration]) -> None:
    for number, configuration in reversed(list(enumerate(configurations))):
        named = number < len(LINE_COLORS)
        color = LINE_COLORS[number] if named else MUTED
        curves = configuration.curves
        epochs = sorted({epoch for curve in curves for epoch in curve})
        values = [[curve[epoch] for curve in curves if epoch in curve] for epoch in epochs]
        x = [epoch + 1 for epoch in epochs]
        axis.plot(
            x,
            [np.mean(v) for v in values],
            color=color,
            label=_wrap(configuration.name, 30) if named else None,
            marker="o" if len(epochs) == 1 else None,
        )
        low, high = [min(v) for v in values], [max(v) for v in values]
        axis.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    use_integer_ticks(axis)
    label_axes(axis, "Accuracy over all classes", "Epoch", "Accuracy (%)")
    handles, labels = axis.get_legend_handles_labels()
    add_legend(axis, handles=handles[::-1], labels=labels[::-1], loc="best")
