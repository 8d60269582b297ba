"""The trials of a search: the metric by each searched option, and the importance of the options."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bcl_ray.experiment.metric_names import TITLES
from bcl_ray.report.figures.style import (
    ALL_COLOR,
    MUTED,
    SHOT_COLORS,
    label_axes,
    set_title,
    shorten,
    style_axes,
    use_integer_ticks,
    use_log_scale,
)
from bcl_ray.report.importance import CHANCE, MIN_TRIALS, Row, importance, is_number

COLUMNS = 3
BLUE, RED = SHOT_COLORS["many"], SHOT_COLORS["few"]


def search_figure(
    rows: Sequence[Row], metric: str, names: Sequence[str], scales: Mapping[str, str]
) -> Figure:
    """The metric of all trials by each searched option, and each option's importance.

    Args:
        rows: One per trial: its options and its metric by name. `trial` is the trial's number;
            number 0 has the published values. `stopped` marks a trial that was stopped early, and
            `best` the winner. A trial without the metric is left out.
        metric: Name of the metric on the y axis.
        names: The searched options, `section.field`.
        scales: "log", "linear" or "category" for each option; linear if it is not given.
    """
    rows = [row for row in rows if is_number(row.get(metric))]
    columns = min(COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)
    bars = 0.8 + 0.32 * (len(names) + 1)  # inches
    figure = Figure((max(4 * columns, 8), 3.2 * lines + bars + 0.6), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[3.2] * lines + [bars])
    shared = None
    for number, name in enumerate(names):
        line, column = divmod(number, columns)
        shared = figure.add_subplot(grid[line, column], sharey=shared)
        style_axes(shared)
        _draw_trials(shared, rows, metric, name, scales.get(name, "linear"))
        label_axes(shared, "", name, TITLES.get(metric, metric) if column == 0 else "")
    _draw_importance(figure.add_subplot(grid[lines, :]), rows, metric, names)
    stopped = sum(bool(row.get("stopped")) for row in rows)
    title = f"{metric} of {len(rows)} trials" + (f", {stopped} stopped early" if stopped else "")
    set_title(figure, title)
    if shared is not None:
        _add_legend(figure)
    return figure


def _draw_trials(axis: Axes, rows: Sequence[Row], metric: str, name: str, scale: str) -> None:
    rows = [row for row in rows if name in row]
    if not rows:
        return
    x = SCALES[scale](axis, [row[name] for row in rows])
    y = np.array([float(row[metric]) for row in rows])
    stopped = np.array([bool(row.get("stopped")) for row in rows])
    published = np.array([row.get("trial") == 0 for row in rows])
    best = np.array([bool(row.get("best")) for row in rows])
    hollow = {"facecolor": "none", "edgecolor": MUTED}
    marks: list[tuple[str, NDArray[np.bool_], dict[str, Any]]] = [
        ("complete", ~stopped & ~published, {"s": 36, "color": BLUE}),
        ("stopped early", stopped, {"s": 30, **hollow}),
        ("published", published, {"s": 70, "marker": "D", "color": ALL_COLOR}),
        ("best", best, {"s": 190, "marker": "*", "color": RED, "zorder": 3}),
    ]
    for label, selected, style in marks:
        if selected.any():
            axis.scatter(x[selected], y[selected], label=label, **style)


def _categories(axis: Axes, values: Sequence[Any]) -> NDArray[np.float64]:
    names = sorted({str(value) for value in values})
    axis.set_xticks(range(len(names)), [shorten(name) for name in names])
    axis.set_xlim(-0.5, len(names) - 0.5)
    x = np.array([names.index(str(value)) for value in values], dtype=float)
    return x + np.linspace(-0.12, 0.12, len(x))  # so that equal points do not hide each other


def _linear(axis: Axes, values: Sequence[Any]) -> NDArray[np.float64]:
    if all(isinstance(value, int) for value in values):
        use_integer_ticks(axis)
    return np.array([float(value) for value in values])


def _logarithmic(axis: Axes, values: Sequence[Any]) -> NDArray[np.float64]:
    x = np.array([float(value) for value in values])
    use_log_scale(axis.xaxis, x.min(), x.max())
    return _linear(axis, values)


# Prepares the x axis for the values of an option, and returns their positions.
SCALES = {"category": _categories, "linear": _linear, "log": _logarithmic}


def _add_legend(figure: Figure) -> None:
    """Add one legend for the marks of all panels."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        axis_handles, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, axis_handles, strict=True))
    options: dict[str, Any] = {"ncols": len(handles), "frameon": False, "fontsize": 10}
    figure.legend(list(handles.values()), list(handles), loc="outside upper right", **options)


def _draw_importance(axis: Axes, rows: Sequence[Row], metric: str, names: Sequence[str]) -> None:
    shares = importance(rows, metric, names)
    style_axes(axis)
    label_axes(axis, "Importance of each option", f"Share of the variance of {metric}")
    axis.grid(visible=False, axis="y")
    if not shares:
        axis.text(0.5, 0.5, f"fewer than {MIN_TRIALS} trials", ha="center", color=MUTED)
        axis.set(xticks=[], yticks=[])
        return
    order = sorted(shares, key=shares.__getitem__)
    colors = [MUTED if name == CHANCE else BLUE for name in order]
    axis.barh(order, [shares[name] for name in order], color=colors)
