"""The space of a search: the options that vary, and the values that each of them may take.

A point is a value for each of these options. `space_parser` reads a space from YAML.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import yaml

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError

Kind = Literal["uniform", "log_uniform", "integer", "choice"]
Point = dict[str, Any]  # a value per option

GRID_POINTS = 3  # values of an interval in a grid, by default
SIGNIFICANT_DIGITS = 4  # of a sampled value, for people to read
MAX_ATTEMPTS = 1000  # random points that are tried until one of them is a valid experiment


@dataclass(frozen=True)
class Parameter:
    """One searched option."""

    name: str  # section.field
    kind: Kind  # distribution of the values
    values: tuple[Any, ...]  # (lowest, highest) of an interval, both included, or all choices
    points: int = GRID_POINTS  # values of an interval in a grid

    def __str__(self) -> str:
        values = ", ".join(map(str, self.values))
        if self.kind == "choice":
            return f"{self.name}: one of {values}"
        return f"{self.name}: {values.replace(', ', ' to ')}, {self.kind.replace('_', ' ')}"

    @property
    def scale(self) -> str:
        """The kind of axis that shows the option: log, linear or category."""
        return {"log_uniform": "log", "choice": "category"}.get(self.kind, "linear")

    def quantile(self, share: float) -> Any:
        """The value below which a share (0 to 1) of the samples lies."""
        if self.kind == "choice":
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "integer":
            return min(low + int(share * (high - low + 1)), high)
        if self.kind == "log_uniform":
            return self.rounded(low * (high / low) ** share)
        return self.rounded(low + share * (high - low))

    def rounded(self, value: float) -> float:
        """A value of an interval, rounded to SIGNIFICANT_DIGITS and still in the interval."""
        low, high = self.values
        return float(min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), low), high))

    def grid(self) -> list[Any]:
        """The values of a grid: an interval's in rising order, choices in their own order."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind == "integer":
            count = min(self.points, high - low + 1)
            return sorted({round(value) for value in np.linspace(low, high, count).tolist()})
        return [self.quantile(share) for share in np.linspace(0, 1, self.points).tolist()]


@dataclass(frozen=True)
class Space:
    """The searched options, and the experiment that they change."""

    experiment: Experiment
    parameters: tuple[Parameter, ...]

    @property
    def published(self) -> Point:
        """The experiment's own values, which trial 0 has."""
        options = self.experiment.model_dump(mode="json")
        return {parameter.name: _value(options, parameter.name) for parameter in self.parameters}

    def sample(self, seed: int, number: int) -> Point:
        """A random point, determined by the seed and the trial's number.

        Raises:
            ValueError: No random point is a valid experiment.
        """
        generator = np.random.default_rng([seed, number])
        for _ in range(MAX_ATTEMPTS):
            point = {p.name: p.quantile(float(generator.random())) for p in self.parameters}
            if self.allows(point):
                return point
        raise UserError(
            f"of {MAX_ATTEMPTS:,} points of the search space, the configuration allows none: "
            f"{self.refusal(point)}"
        )

    def grid(self) -> Iterator[Point]:
        """All points of the grid that are valid experiments, without the published one."""
        names = [parameter.name for parameter in self.parameters]
        published = self.published
        for values in itertools.product(*(parameter.grid() for parameter in self.parameters)):
            point = dict(zip(names, values, strict=True))
            if point != published and self.allows(point):
                yield point

    def allows(self, point: Point) -> bool:
        """Whether values, each of which is in range, are valid together."""
        return self.refusal(point) is None

    def refusal(self, point: Point) -> str | None:
        """Why a point is no valid experiment; None where it is one."""
        try:
            with_overrides(self.experiment, overrides(point))
        except ValueError as error:
            return str(error)
        return None


def overrides(point: Mapping[str, Any]) -> list[str]:
    """A point as `section.field=value`, as the command line takes it."""
    return [f"{name}={_one_line_yaml(value)}" for name, value in point.items()]


def _one_line_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()
    return text.removesuffix("...").strip()


def _value(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = options[part]
    return options
