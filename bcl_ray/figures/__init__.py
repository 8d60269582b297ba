"""The pictures that a run and a search leave behind: functions from data to a Figure.

matplotlib's object interface only: no window, no global figure, nothing to close.
"""

from matplotlib.figure import Figure

from bcl_ray.figures import search
from bcl_ray.figures.style import ALL_COLOR, GROUP_COLORS, png

__all__ = ["ALL_COLOR", "GROUP_COLORS", "Figure", "png", "search"]
