"""What a search found: the metric against each parameter, and which parameter mattered."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bcl_ray.report.figures.style import (
    ALL_COLOR,
    GROUP_COLORS,
    MUTED,
    logarithmic,
    plain,
    short,
    titled,
)

COLUMNS = 3
ENOUGH = 8  # trials, below which an importance says nothing; assumption
TREES = 300
CHANCE = "a random number"

Row = Mapping[str, Any]


def parameters(
    rows: Sequence[Row], metric: str, names: Sequence[str], scales: Mapping[str, str]
) -> Figure:
    """The metric of all trials against each parameter, and each parameter's importance.

    Args:
        rows: one per trial: its parameters and its metric by name; `trial` is its number, of
            which 0 has the published values, `stopped` says that it was stopped early, and `best`
            that it is the winner. A trial without the metric is left out.
        metric: name of what is on the y axis, in per cent where it begins with `accuracy/`.
        names: the searched parameters, `section.field`.
        scales: "log", "linear" or "category" for each of them; linear where it is missing.
    """
    found = [row for row in rows if _finite(row.get(metric))]
    columns = min(COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)
    bars = 0.8 + 0.32 * (len(names) + 1)  # inches
    figure = Figure((max(4 * columns, 8), 3.2 * lines + bars + 0.6), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[3.2] * lines + [bars])
    unit = " (%)" if metric.startswith("accuracy/") else ""
    shared = None
    for number, name in enumerate(names):
        line, column = divmod(number, columns)
        shared = figure.add_subplot(grid[line, column], sharey=shared)
        plain(shared)
        _panel(shared, found, metric, name, scales.get(name, "linear"))
        titled(shared, "", name, metric + unit if column == 0 else "")
    _importance(figure.add_subplot(grid[lines, :]), found, metric, names)
    stopped = sum(bool(row.get("stopped")) for row in found)
    title = f"{metric} of {len(found)} trials" + (f", {stopped} stopped early" if stopped else "")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    if shared is not None:
        _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels, of what any of them shows."""
    kinds: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        kinds |= dict(zip(labels, handles, strict=True))
    options: dict[str, Any] = {"ncols": len(kinds), "frameon": False, "fontsize": 10}
    figure.legend(list(kinds.values()), list(kinds), loc="outside upper right", **options)


def importance(
    rows: Sequence[Row], metric: str, names: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """How much of the metric's variance over trials a forest ascribes to each parameter.

    The shares sum to 1 together with that of `a random number`, a column that has none: what is
    not clearly above it does not matter, or there are too few trials to know.

    Returns:
        Shares by name; empty with fewer than 8 trials that have the metric.

    Mean decrease in impurity: Louppe et al., "Understanding variable importances in forests of
    randomized trees", NeurIPS 2013.
    """
    rows = [row for row in rows if _finite(row.get(metric))]
    if len(rows) < ENOUGH:
        return {}
    from sklearn.ensemble import ExtraTreesRegressor  # noqa: PLC0415 - a second of import

    random = np.random.default_rng(seed)
    columns = [_numbers(rows, name) for name in names]
    columns.append(random.permutation(len(rows)).astype(float))
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=2, random_state=seed)
    forest.fit(np.stack(columns, axis=1), [float(row[metric]) for row in rows])
    shares = forest.feature_importances_.tolist()
    return dict(zip([*names, CHANCE], shares, strict=True))


def _panel(axis: Axes, rows: Sequence[Row], metric: str, name: str, scale: str) -> None:
    rows = [row for row in rows if name in row]
    if not rows:
        return
    if scale == "category":
        labels = sorted({str(row[name]) for row in rows})
        x = np.array([labels.index(str(row[name])) for row in rows], dtype=float)
        x += np.linspace(-0.12, 0.12, len(x))  # lest equal ones hide each other
        axis.set_xticks(range(len(labels)), [short(label) for label in labels])
        axis.set_xlim(-0.5, len(labels) - 0.5)
    else:
        x = np.array([float(row[name]) for row in rows])
        if scale == "log":
            logarithmic(axis.xaxis, x.min(), x.max())
        if all(isinstance(row[name], int) for row in rows):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    y = np.array([float(row[metric]) for row in rows])
    stopped = np.array([bool(row.get("stopped")) for row in rows])
    first = np.array([row.get("trial") == 0 for row in rows])
    full = ~stopped & ~first
    blue, red = GROUP_COLORS["many"], GROUP_COLORS["few"]
    axis.scatter(x[full], y[full], s=36, color=blue, label="complete")
    if stopped.any():
        axis.scatter(
            x[stopped], y[stopped], s=30, facecolor="none", edgecolor=MUTED, label="stopped early"
        )
    if first.any():
        axis.scatter(x[first], y[first], s=70, marker="D", color=ALL_COLOR, label="published")
    best = np.array([bool(row.get("best")) for row in rows])
    if best.any():
        axis.scatter(x[best], y[best], s=190, marker="*", color=red, zorder=3, label="best")


def _importance(axis: Axes, rows: Sequence[Row], metric: str, names: Sequence[str]) -> None:
    shares = importance(rows, metric, names)
    plain(axis)
    titled(axis, "importance", "share of the variance" if shares else "")
    axis.grid(visible=False, axis="y")
    if not shares:
        axis.text(0.5, 0.5, f"fewer than {ENOUGH} trials", ha="center", color=MUTED)
        axis.set(xticks=[], yticks=[])
        return
    order = sorted(shares, key=shares.__getitem__)
    colors = [MUTED if name == CHANCE else GROUP_COLORS["many"] for name in order]
    axis.barh(order, [shares[name] for name in order], color=colors)


def _numbers(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """A parameter of all trials as numbers; names become their places in the alphabet."""
    values = [row.get(name) for row in rows]
    if all(_finite(value) for value in values):
        return np.array(values, dtype=float)
    labels = sorted({str(value) for value in values})
    return np.array([labels.index(str(value)) for value in values], dtype=float)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
