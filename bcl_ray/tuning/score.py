"""The score that a search maximises: a metric of the evaluation, or a weighted sum of several."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bcl_ray.experiment.metric_names import (
    ECE,
    ECE_CALIBRATED,
    GEOMETRY,
    NLL,
    TEMPERATURE,
    accuracy,
)
from bcl_ray.machine.errors import UserError

TERM = re.compile(
    r"\s*([+-])?\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*\*\s*)?([a-z][a-z0-9_]*/[a-z0-9_]+)\s*"
)
OTHER_METRICS = (NLL, ECE, ECE_CALIBRATED, TEMPERATURE)  # of every evaluation, beside accuracy


@dataclass(frozen=True)
class Score:
    """A weighted sum of metrics."""

    text: str  # as it was given on the command line
    weights: tuple[tuple[str, float], ...]  # (metric, weight) pairs

    def of(self, metrics: Mapping[str, float]) -> float:
        """The score of an evaluation.

        Raises:
            ValueError: The evaluation lacks one of the metrics.
        """
        for name, _ in self.weights:
            if name not in metrics:
                raise UserError(
                    f"--metric {self.text}: the evaluation has no '{name}'; it has "
                    f"{', '.join(sorted(metrics))}"
                )
        return sum(weight * metrics[name] for name, weight in self.weights)

    def check_available(self, groups: list[str], geometry_every: int) -> None:
        """Refuse metrics that not every evaluation of the data set has.

        Which geometry metrics there are is only known at the first evaluation, so all are accepted.

        Args:
            groups: Groups of classes that the data set has, names from GROUPS.
            geometry_every: The option train.geometry_every.

        Raises:
            ValueError: There is no such metric, or not in every evaluation; the message names it.
        """
        available = [*(accuracy(group) for group in groups), *OTHER_METRICS]
        for name, _ in self.weights:
            if name not in available and not name.startswith(GEOMETRY):
                raise UserError(
                    f"--metric {self.text}: there is no '{name}' with these data: there are "
                    f"{', '.join(available)}, geometry/*"
                )
            if name.startswith(GEOMETRY) and geometry_every > 1:
                raise UserError(
                    f"--metric {self.text}: '{name}' is not measured at every evaluation, because "
                    f"train.geometry_every is {geometry_every}: set train.geometry_every=1"
                )


def parse_score(text: str) -> Score:
    """Read `accuracy/all`, or a sum such as `0.5*accuracy/few + 0.5*accuracy/all`.

    A higher score is better. A metric of which lower is better is subtracted:
    `accuracy/all - calibration/ece`.

    Raises:
        ValueError: The text is neither.
    """
    weights: dict[str, float] = {}
    position = 0
    while position < len(text) or not weights:
        match = TERM.match(text, position)
        if match is None or (weights and match[1] is None):
            raise UserError(
                f"--metric '{text}' must be a metric's name, or a mix such as "
                "0.5*accuracy/few+0.5*accuracy/all"
            )
        sign, factor, name = match.groups()
        weight = float(factor or 1) * (-1 if sign == "-" else 1)
        weights[name] = weights.get(name, 0.0) + weight
        position = match.end()
    return Score(text.strip(), tuple(weights.items()))
