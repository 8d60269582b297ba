"""Read the space of a search from YAML.

The text has one option a line, any `section.field` of the experiment that affects the result:

    extends: loss                              # or leave out, to search nothing else
    loss.tau: {uniform: [0.5, 2]}
    optim.lr: {log_uniform: [0.01, 0.5], points: 4}
    optim.warmup_epochs: {integer: [0, 10]}
    views.contrastive.blur: {choice: [0, 0.5]}

`points` is the number of values that a grid takes from an interval.
"""

import math
from typing import Any, get_args

import yaml

from bcl_ray.experiment.choices import LOSSES
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.tuning.space import GRID_POINTS, Kind, Parameter, Space, overrides

# Around the published values: temperature 0.07 to 0.1, weights 1 to 2 and 0.35 to 0.6, tau 1.
LOSS_SPACE: dict[str, dict[str, Any]] = {
    "loss.temperature": {"log_uniform": [0.03, 0.5]},
    "loss.contrastive_weight": {"log_uniform": [0.05, 2.0]},
    "loss.classification_weight": {"uniform": [0.5, 3.0]},
    "loss.tau": {"uniform": [0.0, 2.0]},
    "loss.anchor_mean": {"choice": ["instance", "class"]},
}
NOT_SEARCHABLE = {  # options that the search sets by itself, and why
    "name": "it names the recipe",
    "data": "trials are compared on the same data",
    "scale": "it changes how fast a trial is, not what it computes",
    "tracking": "the search names its runs",
    "train.seed": "--confirm K,N trains with other seeds",
}
EXAMPLE = "loss.tau: {uniform: [0.5, 2]}"


def parse_space(text: str | None, experiment: Experiment) -> Space:
    """Read a space, and check that the experiment accepts every bound and choice.

    Args:
        text: YAML, see above; None: the options of the loss.
        experiment: Experiment whose options are searched.

    Raises:
        ValueError: The text is wrong; the message names the option.
    """
    content = {"extends": "loss"} if text is None else _yaml(text)
    if not isinstance(content, dict) or not content:
        raise UserError(f"--space must map options to their values, as in {EXAMPLE}")
    extends = content.pop("extends", None)
    if extends not in (None, "loss"):
        raise UserError(f"--space: extends is '{extends}': it must be loss, or left out")
    content = (loss_space(experiment) if extends else {}) | content
    parameters = tuple(_parameter(str(name), value) for name, value in content.items())
    if not parameters:
        raise UserError(f"--space names no option: write one a line, as in {EXAMPLE}")
    for parameter in parameters:
        _check_values(parameter, experiment)
    return Space(experiment, parameters)


def loss_space(experiment: Experiment) -> dict[str, Any]:
    """The options that affect the experiment's loss, each with its default range.

    Raises:
        ValueError: The loss has no such options.
    """
    loss = LOSSES[experiment.loss.kind]
    if not loss.uses:
        raise UserError(
            f"loss.kind '{loss.name}' has no options to search: give --space, or another kind"
        )
    return {name: values for name, values in LOSS_SPACE.items() if name.split(".")[1] in loss.uses}


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--space is not valid YAML: {' '.join(str(error).split())}") from None


def _parameter(name: str, content: Any) -> Parameter:
    kinds = get_args(Kind)
    where = f"--space: {name}"
    for option, reason in NOT_SEARCHABLE.items():
        if name == option or name.startswith(option + "."):
            raise UserError(f"{where} cannot be searched: {reason}")
    content = dict(content) if isinstance(content, dict) else {}
    points = content.pop("points", GRID_POINTS)
    if len(content) != 1 or next(iter(content)) not in kinds:
        raise UserError(f"{where} must have one of {', '.join(kinds)}, as in {EXAMPLE}")
    ((kind, values),) = content.items()
    if not isinstance(values, list) or len(values) < (1 if kind == "choice" else 2):
        form = "a list of values" if kind == "choice" else "[lowest, highest]"
        raise UserError(f"{where}: {kind} needs {form}, got {values}")
    if not isinstance(points, int) or points < 2:
        raise UserError(f"{where}: points ({points}) must be an integer of at least 2")
    if kind != "choice":
        _check_interval(where, kind, values)
    return Parameter(name, kind, tuple(values), points)


def _check_interval(where: str, kind: str, values: list[Any]) -> None:
    number_type: Any = int if kind == "integer" else int | float
    interval = f"{kind} [{', '.join(map(str, values))}]"
    if len(values) != 2 or not all(
        isinstance(value, number_type) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    ):
        numbers = "integers" if kind == "integer" else "numbers"
        raise UserError(f"{where}: {interval} must be two {numbers}")
    if values[0] >= values[1]:
        raise UserError(f"{where}: {interval} must rise")
    if kind == "log_uniform" and values[0] <= 0:
        raise UserError(f"{where}: {interval} must be above 0, because its logarithm is taken")


def _check_values(parameter: Parameter, experiment: Experiment) -> None:
    """Refuse a parameter unless the experiment accepts its choices, or its bounds."""
    values = list(parameter.values)
    if parameter.kind != "choice":
        # A fraction inside the interval too: options that are integers refuse it.
        values.append(parameter.quantile(0.3141))
    for value in values:
        try:
            with_overrides(experiment, overrides({parameter.name: value}))
        except ValueError as error:
            raise UserError(f"--space: {error}") from None
