"""One look for all figures: colours that colour-blind people tell apart, few lines, large text."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from bcl_ray.experiment.metric_names import SHOT_GROUPS

# Paul Tol's high-contrast scheme: safe for all colour-blind people, and in grey as well.
# https://personal.sron.nl/~pault/
GROUP_COLORS = dict(zip(SHOT_GROUPS, ("#004488", "#DDAA33", "#BB5566"), strict=True))
# The same, with a yellow that is dark enough to read.
TEXT_COLORS = dict(zip(SHOT_GROUPS, ("#004488", "#8A6400", "#BB5566"), strict=True))
CALIBRATED_COLOR = "#2A9D8F"  # no group's
ALL_COLOR, MUTED, FAINT = "#222222", "#777777", "#DDDDDD"
GROUP_MARKERS = dict(zip(SHOT_GROUPS, "os^", strict=True))  # a second way to tell them apart
DPI = 150


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure in inches, and its axes, (rows, columns), without frames."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        plain(axis)
    return figure, np.asarray(axes)


def plain(axis: Axes) -> None:
    """Take the frame away, but for the two axes, and lay a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=ALL_COLOR, labelsize=10)
    axis.grid(color=FAINT, linewidth=0.8)
    axis.set_axisbelow(True)


def titled(axis: Axes, title: str, x: str = "", y: str = "") -> None:
    """Name an axis: what it shows, on the left, and what its sides mean."""
    axis.set_title(title, loc="left", fontsize=12, color=ALL_COLOR)
    axis.set_xlabel(x, fontsize=11)
    axis.set_ylabel(y, fontsize=11)


def logarithmic(side: XAxis | YAxis, low: float, high: float) -> None:
    """Make an axis logarithmic, with plain numbers, where its values differ by over 4 times."""
    if not 0 < 4 * low < high:
        return
    side.axes.set(**{f"{side.axis_name}scale": "log"})
    steps = (1, 2, 5) if high < 100 * low else (1,)
    side.set_major_locator(LogLocator(subs=steps, numticks=8))
    side.set_major_formatter("{x:g}")
    side.set_minor_locator(NullLocator())


def legend(axis: Axes, **options: Any) -> None:
    """A legend without a frame."""
    axis.legend(**{"frameon": False, "fontsize": 10, **options})


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    for text in figure.findobj(Text):  # a class may be called "x$y$", which is no mathematics
        text.set_parse_math(False)
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def short(name: str, characters: int = 18) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= characters else name[: characters - 1] + "…"
