"""How much each searched option matters for the metric of a search's trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_TRIALS = 8  # for an importance; assumption
TREES = 300
CHANCE = "a random number"

Row = Mapping[str, Any]
"""A trial: its options and its metric by name."""


def importance(
    rows: Sequence[Row], metric: str, names: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """The share of the metric's variance over trials that a forest attributes to each option.

    One more column, `a random number`, shows what chance gives: an option that is not clearly
    above it has no effect, or there are too few trials to see one.

    Args:
        rows: One per trial, as in `search_figure`.
        metric: Name of the metric.
        names: The searched options.
        seed: Seed of the forest and of the random numbers.

    Returns:
        Shares by name, which sum to 1; empty with fewer than 8 trials that have the metric.

    Source: mean decrease in impurity, Louppe et al., "Understanding variable importances in forests
    of randomized trees", NeurIPS 2013.
    """
    rows = [row for row in rows if is_number(row.get(metric))]
    if len(rows) < MIN_TRIALS:
        return {}
    from sklearn.ensemble import ExtraTreesRegressor  # noqa: PLC0415 - takes a second

    random = np.random.default_rng(seed)
    columns = [_values(rows, name) for name in names]
    columns.append(random.permutation(len(rows)).astype(float))
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=2, random_state=seed)
    forest.fit(np.stack(columns, axis=1), [float(row[metric]) for row in rows])
    shares = forest.feature_importances_.tolist()
    return dict(zip([*names, CHANCE], shares, strict=True))


def _values(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """The values of an option as numbers; text becomes its position in the alphabet."""
    values = [row.get(name) for row in rows]
    if all(is_number(value) for value in values):
        return np.array(values, dtype=float)
    names = sorted({str(value) for value in values})
    return np.array([names.index(str(value)) for value in values], dtype=float)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
