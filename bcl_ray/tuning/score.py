"""What a search maximises: a metric of the evaluation, or a weighted mix of some."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bcl_ray.machine.errors import UserError

TERM = re.compile(
    r"\s*([+-])?\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*\*\s*)?([a-z][a-z0-9_]*/[a-z0-9_]+)\s*"
)
OTHERS = ("loss/nll", "calibration/ece", "calibration/ece_calibrated", "calibration/temperature")


@dataclass(frozen=True)
class Score:
    """Weights by metric; text is how a person wrote it."""

    text: str
    weights: tuple[tuple[str, float], ...]

    def of(self, metrics: Mapping[str, float]) -> float:
        """The score of an evaluation.

        Raises:
            ValueError: it has no such metric.
        """
        for name, _ in self.weights:
            if name not in metrics:
                raise UserError(
                    f"--metric {self.text}: the evaluation has no '{name}'; it has "
                    f"{', '.join(sorted(metrics))}"
                )
        return sum(weight * metrics[name] for name, weight in self.weights)

    def check_known(self, groups: list[str]) -> None:
        """Refuse what no evaluation of these data has; geometry shows itself at the first.

        Args:
            groups: of GROUPS, those that there are.

        Raises:
            ValueError: naming it.
        """
        known = [*(f"accuracy/{group}" for group in groups), *OTHERS]
        for name, _ in self.weights:
            if name not in known and not name.startswith("geometry/"):
                raise UserError(
                    f"--metric {self.text}: there is no '{name}' with these data: there are "
                    f"{', '.join(known)}, geometry/*"
                )


def parse_score(text: str) -> Score:
    """Read `accuracy/all`, or a mix such as `0.5*accuracy/few + 0.5*accuracy/all`.

    The larger, the better; what is to be small is subtracted: `accuracy/all - calibration/ece`.

    Raises:
        ValueError: it is neither.
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
        weight = float(match[2] or 1) * (-1 if match[1] == "-" else 1)
        weights[match[3]] = weights.get(match[3], 0.0) + weight
        position = match.end()
    return Score(text.strip(), tuple(weights.items()))
