"""The space of a search: which options vary, between which values.

As YAML, one option a line, over any `section.field` of the experiment that is computed:

    extends: loss                              # or leave out, to search nothing else
    loss.tau: {uniform: [0.5, 2]}
    optim.lr: {log_uniform: [0.01, 0.5], points: 4}
    optim.warmup_epochs: {integer: [0, 10]}
    views.contrastive.blur: {choice: [0, 0.5]}

`points` is how many values of an interval a grid has.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import yaml

from bcl_ray.experiment.choices import LOSSES
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError

Kind = Literal["uniform", "log_uniform", "integer", "choice"]
Point = dict[str, Any]  # a value per option

POINTS = 3
DIGITS = 4  # significant ones of a sample, which people are to read
# Around the published values: temperature 0.07 to 0.1, weights 1 to 2 and 0.35 to 0.6, tau 1.
LOSS: dict[str, dict[str, Any]] = {
    "loss.temperature": {"log_uniform": [0.03, 0.5]},
    "loss.contrastive_weight": {"log_uniform": [0.05, 2.0]},
    "loss.classification_weight": {"uniform": [0.5, 3.0]},
    "loss.tau": {"uniform": [0.0, 2.0]},
    "loss.anchor_mean": {"choice": ["instance", "class"]},
}
FIXED = {  # the search decides these
    "name": "it names the recipe",
    "data": "trials are compared on the same data",
    "scale": "it changes how fast a trial is, not what it computes",
    "tracking": "the search names its runs",
    "train.seed": "--confirm K,N trains with other seeds",
}


@dataclass(frozen=True)
class Parameter:
    """One searched option.

    Args:
        name: `section.field`.
        kind: how its values are distributed.
        values: (lowest, highest) of an interval, both included, or all choices.
        points: values of an interval in a grid.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]
    points: int = POINTS

    def __str__(self) -> str:
        values = ", ".join(map(str, self.values))
        if self.kind == "choice":
            return f"{self.name}: one of {values}"
        return f"{self.name}: {values.replace(', ', ' to ')}, {self.kind.replace('_', ' ')}"

    @property
    def scale(self) -> str:
        """How an axis shows it: log, linear or category."""
        return {"log_uniform": "log", "choice": "category"}.get(self.kind, "linear")

    def at(self, share: float) -> Any:
        """The value below which a share (0 to 1) of the samples lies."""
        if self.kind == "choice":
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "integer":
            return min(low + int(share * (high - low + 1)), high)
        if self.kind == "log_uniform":
            value = low * (high / low) ** share
        else:
            value = low + share * (high - low)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """A value of an interval with as many digits as people read, and still within it."""
        low, high = self.values
        return float(min(max(float(f"{value:.{DIGITS}g}"), low), high))

    def grid(self) -> list[Any]:
        """The values of a grid, rising or as the choices come."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind == "integer":
            count = min(self.points, high - low + 1)
            return sorted({round(value) for value in np.linspace(low, high, count).tolist()})
        return [self.at(share) for share in np.linspace(0, 1, self.points).tolist()]


@dataclass(frozen=True)
class Space:
    """The searched options, and the experiment that they change."""

    experiment: Experiment
    parameters: tuple[Parameter, ...]

    @property
    def published(self) -> Point:
        """The experiment's own values, which trial 0 has."""
        return {
            parameter.name: _get(self.experiment, parameter.name) for parameter in self.parameters
        }

    def sample(self, seed: int, number: int) -> Point:
        """The point of a trial, by its number alone; the first that makes an experiment."""
        generator = np.random.default_rng([seed, number])
        for _ in range(1000):
            point = {p.name: p.at(float(generator.random())) for p in self.parameters}
            if self.allows(point):
                return point
        raise UserError(
            "of 1,000 points of the search space, the configuration allows none: "
            f"{self.refusal(point)}"
        )

    def grid(self) -> Iterator[Point]:
        """All points of the grid that make an experiment, but for the published one."""
        names = [parameter.name for parameter in self.parameters]
        for values in itertools.product(*(parameter.grid() for parameter in self.parameters)):
            point = dict(zip(names, values, strict=True))
            if point != self.published and self.allows(point):
                yield point

    def allows(self, point: Point) -> bool:
        """Whether values, each of which is in range, are so together."""
        return self.refusal(point) is None

    def refusal(self, point: Point) -> str | None:
        """Why a point makes no experiment; None where it does."""
        try:
            with_overrides(self.experiment, overrides(point))
        except ValueError as error:
            return str(error)
        return None


def overrides(point: Mapping[str, Any]) -> list[str]:
    """A point as `section.field=value`, as the command line takes them."""
    return [f"{name}={_flow(value)}" for name, value in point.items()]


def loss_space(experiment: Experiment) -> dict[str, Any]:
    """The options of the loss that matter for the experiment's kind of loss.

    Raises:
        ValueError: it has none.
    """
    loss = LOSSES[experiment.loss.kind]
    if not loss.uses:
        raise UserError(
            f"loss.kind '{loss.name}' has no options to search: give --space, or another kind"
        )
    return {name: values for name, values in LOSS.items() if name.split(".")[1] in loss.uses}


def parse_space(text: str | None, experiment: Experiment, origin: str = "--space") -> Space:
    """Read a space, and make sure that the experiment takes every bound and choice.

    Args:
        text: YAML; None: the loss.
        experiment: what is searched around.
        origin: of the text, for errors.

    Raises:
        ValueError: naming the option, and what is wrong with it.
    """
    content = {"extends": "loss"} if text is None else _yaml(text, origin)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{origin} must map options to their values, as in {_EXAMPLE}")
    extends = content.pop("extends", None)
    if extends not in (None, "loss"):
        raise UserError(f"{origin}: extends is '{extends}': it must be loss, or left out")
    content = (loss_space(experiment) if extends else {}) | content
    parameters = tuple(_parameter(str(name), value, origin) for name, value in content.items())
    if not parameters:
        raise UserError(f"{origin} names no option: write one a line, as in {_EXAMPLE}")
    for parameter in parameters:
        _check(parameter, experiment, origin)
    return Space(experiment, parameters)


_EXAMPLE = "loss.tau: {uniform: [0.5, 2]}"


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def _parameter(name: str, content: Any, origin: str) -> Parameter:
    kinds = get_args(Kind)
    where = f"{origin}: {name}"
    for fixed, why in FIXED.items():
        if name == fixed or name.startswith(fixed + "."):
            raise UserError(f"{where} cannot be searched: {why}")
    rest = dict(content) if isinstance(content, dict) else {}
    points = rest.pop("points", POINTS)
    if len(rest) != 1 or next(iter(rest)) not in kinds:
        raise UserError(f"{where} must have one of {', '.join(kinds)}, as in {_EXAMPLE}")
    ((kind, values),) = rest.items()
    if not isinstance(values, list) or len(values) < (1 if kind == "choice" else 2):
        wanted = "a list of values" if kind == "choice" else "[lowest, highest]"
        raise UserError(f"{where}: {kind} needs {wanted}, got {values}")
    if not isinstance(points, int) or points < 2:
        raise UserError(f"{where}: points ({points}) must be an integer of at least 2")
    if kind != "choice":
        _check_interval(where, kind, values)
    return Parameter(name, kind, tuple(values), points)


def _check_interval(where: str, kind: str, values: list[Any]) -> None:
    wanted: Any = int if kind == "integer" else int | float
    shown = f"{kind} [{', '.join(map(str, values))}]"
    if len(values) != 2 or not all(
        isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    ):
        numbers = "integers" if kind == "integer" else "numbers"
        raise UserError(f"{where}: {shown} must be two {numbers}")
    if values[0] >= values[1]:
        raise UserError(f"{where}: {shown} must rise")
    if kind == "log_uniform" and values[0] <= 0:
        raise UserError(f"{where}: {shown} must be above 0, for its logarithm is uniform")


def _check(parameter: Parameter, experiment: Experiment, origin: str) -> None:
    """Try the bounds and a value between them, or every choice."""
    interval = parameter.kind != "choice"
    # No round share, so that what is not an integer shows.
    tried = [*parameter.values, parameter.at(0.3141)] if interval else parameter.values
    for value in tried:
        try:
            with_overrides(experiment, overrides({parameter.name: value}))
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()
    return text.removesuffix("...").strip()


def _get(experiment: Experiment, name: str) -> Any:
    value: Any = experiment.model_dump(mode="json")
    for part in name.split("."):
        value = value[part]
    return value
