"""The figures of runs and searches: functions from data to a matplotlib Figure.

They use matplotlib's object interface only, so no window opens and no figure stays registered.
"""

from matplotlib.figure import Figure

from bcl_ray.report.figures import search
from bcl_ray.report.figures.calibration import reliability
from bcl_ray.report.figures.classes import accuracy_by_class
from bcl_ray.report.figures.confusion import confusion
from bcl_ray.report.figures.curves import accuracy_over_epochs, geometry_over_epochs
from bcl_ray.report.figures.mistakes import Mistake, mistake_grid
from bcl_ray.report.figures.representation import class_cosines
from bcl_ray.report.figures.style import SHOT_COLORS, png

__all__ = [
    "SHOT_COLORS",
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
