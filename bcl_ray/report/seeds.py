"""What several seeds of one configuration give: mean, standard deviation and interval."""

import math
import statistics
from collections.abc import Mapping, Sequence

CONFIDENCE = 0.95


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of a sample; of one value, there is no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


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
