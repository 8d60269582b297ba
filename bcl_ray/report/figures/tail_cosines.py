"""How close the class means of the tail are to each other, for several configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bcl_ray.report.figures.style import ALL_COLOR, MUTED, SHOT_COLORS, label_axes, make_figure
from bcl_ray.report.seeds import half_interval, mean_and_deviation

TITLES = {"tail cosine": "Embeddings", "feature tail cosine": "Contrastive features"}


@dataclass(frozen=True)
class TailCosines:
    """Runs of one configuration with different seeds."""

    name: str
    values: Mapping[str, Sequence[float]]
    """Cosine of each seed, by a key of TITLES."""
    ideal: float
    """The cosine of a regular simplex, -1/(C - 1) for C classes."""


def tail_cosines(rows: Sequence[TailCosines]) -> Figure:
    """Mean and 95 % interval over seeds of each configuration, the first one at the top."""
    spaces = [space for space in TITLES if any(row.values.get(space) for row in rows)]
    height = max(2.6, 1.3 + 0.4 * len(rows))
    figure, axes = make_figure(6.2 * len(spaces), height, 1, len(spaces), sharey=True)
    for axis, space in zip(axes[0], spaces, strict=True):
        _draw(axis, rows, space)
    axes[0, 0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    options = {"ncols": 3, "frameon": False, "fontsize": 10}
    figure.legend(handles, labels, loc="outside lower left", **options)
    return figure


def _draw(axis: Axes, rows: Sequence[TailCosines], space: str) -> None:
    for number, row in enumerate(rows):
        named = number == 0
        label = "regular simplex, -1/(C - 1)" if named else None
        axis.plot([row.ideal] * 2, [number - 0.4, number + 0.4], color=ALL_COLOR, label=label)
        values = row.values.get(space, ())
        if not values:
            continue
        color, y = SHOT_COLORS["few"], [number] * len(values)
        style: dict[str, Any] = {"color": MUTED, "markersize": 4, "zorder": 3}
        axis.plot(values, y, "o", label="seeds" if named else None, **style)
        axis.errorbar(
            mean_and_deviation(values)[0],
            number,
            xerr=half_interval(values),
            color=color,
            marker="^",
            markersize=7,
            capsize=4,
            label="mean, 95 % interval" if named else None,
        )
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -1), min(high, 1))  # intervals of two seeds can be wider
    label_axes(axis, f"{TITLES[space]}: tail-tail cosines", "Mean cosine of centred class means")
