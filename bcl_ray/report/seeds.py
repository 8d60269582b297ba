"""What several seeds of one configuration give: mean, standard deviation and interval."""

import math
import statistics
from collections.abc import Mapping, Sequence

CONFIDENCE = 0.95


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of a sample; of one value, there is no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(mean: float, half: float | None, digits: int) -> str:
    """A mean as text with so many digits behind the point, and how far values lie from it.

    Args:
        mean: The mean.
        half: A standard deviation, or half of an interval; None if there is none.
        digits: Digits behind the point.
    """
    return f"{mean:.{digits}f}" if half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by the t distribution; None for one value.

    It assumes that the values are independent and about normally distributed.
    """
    _, deviation = mean_and_deviation(values)
    if deviation is None:
        return None
    from scipy.stats import t  # noqa: PLC0415 - takes a second

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * deviation / math.sqrt(len(values))


def paired_differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """First minus second for every seed that both have, by rising seed."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
