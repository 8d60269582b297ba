"""Counts from amounts of CPUs and GPUs, which may be fractions."""

import math

TOLERANCE = 1e-9  # of floating point: 0.3 CPU hold three tasks of 0.1 CPU, but 0.3 / 0.1 < 3


def parts_in(total: float, part: float) -> int:
    """How many whole parts a total has room for."""
    return math.floor(total / part + TOLERANCE)
