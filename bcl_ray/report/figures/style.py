"""The common look of all figures: colours that colour-blind people can distinguish, few lines."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from bcl_ray.experiment.metric_names import SHOT_GROUPS

ALL_COLOR, MUTED, FAINT = "#222222", "#777777", "#DDDDDD"
# Paul Tol's high-contrast scheme, which also works in grey. https://personal.sron.nl/~pault/
SHOT_COLORS = dict(zip(SHOT_GROUPS, ("#004488", "#DDAA33", "#BB5566"), strict=True))
GROUP_COLORS = {"all": ALL_COLOR, **SHOT_COLORS}
# For text, the same colours with a yellow that is dark enough to read.
TEXT_COLORS = GROUP_COLORS | {"medium": "#8A6400"}
PAIR_COLORS = {
    "head-head": SHOT_COLORS["many"],
    "head-tail": MUTED,
    "tail-tail": SHOT_COLORS["few"],
}
GROUP_MARKERS = {"all": "D", **dict(zip(SHOT_GROUPS, "os^", strict=True))}
DPI = 150


def make_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes, (rows, columns).

    Args:
        width: Width of the figure in inches.
        height: Height of the figure in inches.
        rows: Rows of axes.
        columns: Columns of axes.
        options: Further arguments of matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        style_axes(axis)
    return figure, np.asarray(axes)


def style_axes(axis: Axes) -> None:
    """Show only the left and bottom sides of the frame, and a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=ALL_COLOR, labelsize=10)
    axis.grid(color=FAINT, linewidth=0.8)
    axis.set_axisbelow(True)


def set_title(figure: Figure, title: str) -> None:
    """Set the title of a figure with several axes."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=ALL_COLOR)


def label_axes(axis: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set the title of axes, and the labels of their two sides."""
    axis.set_title(title, loc="left", fontsize=12, color=ALL_COLOR)
    axis.set_xlabel(x, fontsize=11)
    axis.set_ylabel(y, fontsize=11)


def use_integer_ticks(axis: Axes, most: int = 10) -> None:
    """Put ticks of the x axis at whole numbers only, such as epochs."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=most))


def use_log_scale(side: XAxis | YAxis, low: float, high: float) -> None:
    """Make a side logarithmic, with plain numbers, if the largest value is over 4 x the smallest.

    Args:
        side: The side of the axes.
        low: The smallest value.
        high: The largest value.
    """
    if not 0 < 4 * low < high:
        return
    side.axes.set(**{f"{side.axis_name}scale": "log"})
    steps = (1, 2, 5) if high < 100 * low else (1,)
    side.set_major_locator(LogLocator(subs=steps, numticks=8))
    side.set_major_formatter("{x:g}")
    side.set_minor_locator(NullLocator())


def add_legend(axis: Axes, **options: Any) -> None:
    """Add a legend without a frame."""
    axis.legend(**{"frameon": False, "fontsize": 10, **options})


def png(figure: Figure) -> bytes:
    """The content of a PNG file with the figure."""
    buffer = io.BytesIO()
    for text in figure.findobj(Text):  # a class named "x$y$" is not a formula
        text.set_parse_math(False)
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def shorten(name: str, characters: int = 18) -> str:
    """The name in one line, cut to a number of characters."""
    name = "".join(c if c.isprintable() else " " for c in name).strip()
    return name if len(name) <= characters else name[: characters - 1] + "…"
