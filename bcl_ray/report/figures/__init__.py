"""The pictures that a run and a search leave behind: functions from data to a Figure.

matplotlib's object interface only: no window, no global figure, nothing to close.
"""

from matplotlib.figure import Figure

from bcl_ray.report.figures import search
from bcl_ray.report.figures.classes import accuracy_by_class, confusion, reliability
from bcl_ray.report.figures.curves import accuracy_over_epochs, geometry_over_epochs
from bcl_ray.report.figures.mistakes import Mistake, mistake_grid
from bcl_ray.report.figures.representation import class_cosines
from bcl_ray.report.figures.style import ALL_COLOR, GROUP_COLORS, png

__all__ = [
    "ALL_COLOR",
    "GROUP_COLORS",
    "Figure",
    "Mistake",
    "accuracy_by_class",
    "accuracy_over_epochs",
    "class_cosines",
    "confusion",
    "geometry_over_epochs",
    "mistake_grid",
    "png",
    "reliability",
    "search",
]
