"""Read the file of a study: a grid of experiments, each of which is trained with several seeds.

    recipe: digits_lt               # name or file
    overrides:                      # of all cells
      - train.epochs=30
    axes:                           # the cells are the product of all axes
      method:
        ce: [loss.kind=ce]          # a label, and the overrides that it stands for
        bcl: []
      data:
        mine: {recipe: mine.yaml, overrides: [train.epochs=10]}     # or another recipe
    seeds: 3                        # 0, 1 and 2; or a list
    compare:                        # differences between labels of the first axis;
      - [bcl, ce]                   # by default of each one from the first
    shards:                         # how to make the data, for the message when they are missing
      data/digits_lt: bcl-ray shard digits data/digits_lt

Overrides apply in this order: those of all cells, those of each axis, those of the command line.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.options.section import NAME
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import load_recipe
from bcl_ray.experiment.yaml_text import parse, read_text
from bcl_ray.machine.errors import UserError
from bcl_ray.tuning.study_cells import Cell, Study

KEYS = ("recipe", "overrides", "axes", "seeds", "compare", "shards")
RESERVED = {  # options that a cell cannot have
    "train.seed": "seeds has them",
    "tracking.run": "runs are named by their cells and seeds",
}
SHARED_BY_CELLS = ("tracking.", "name")  # beginnings of options


def read_study(file: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study's file.

    Args:
        file: YAML, see above.
        overrides: Changes to all cells, after those of the file.

    Raises:
        ValueError: The file cannot be read or is wrong; the message names the file, the key, the
            value and the rule.
    """
    text = read_text(file)
    study = parse_study(parse(text, str(file)), str(file), overrides)
    return replace(study, text=text)


def parse_study(content: Any, file: str, overrides: Sequence[str] = ()) -> Study:
    """The study in a file's content; arguments and errors as of `read_study`."""
    known = ", ".join(KEYS)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} must be a mapping with some of the keys {known}")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: there is no key '{key}': there are {known}")
    reader = _Reader(file, content.get("recipe"), tuple(overrides))
    reader.check_overrides("overrides", overrides)
    axes = reader.axes(content.get("axes"))
    cells = reader.cells(axes, reader.override_list("overrides", content.get("overrides")))
    return Study(
        file,
        tuple(overrides),
        cells,
        reader.seeds(content.get("seeds", 1)),
        reader.compare(content.get("compare"), next(iter(axes.items()))),
        reader.recipes(axes),
        reader.shards(content.get("shards") or {}),
    )


@dataclass(frozen=True)
class _Choice:
    """A label of an axis."""

    recipe: Any  # None: that of the file
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class _Reader:
    """Checks the parts of a file; its errors begin with the file and the key."""

    file: str
    recipe: Any
    overrides: tuple[str, ...]  # of the command line

    def error(self, key: str, text: str) -> UserError:
        return UserError(f"{self.file}: {key}{text}")

    def axes(self, content: Any) -> dict[str, dict[str, _Choice]]:
        if not isinstance(content, dict) or not content:
            raise self.error("axes", " must map each axis to its labels, as in {method: {bcl: []}}")
        return {str(axis): self._axis(str(axis), labels) for axis, labels in content.items()}

    def recipes(self, axes: Mapping[str, Mapping[str, _Choice]]) -> tuple[str, ...]:
        named = [self.recipe]
        for labels in axes.values():
            named += [choice.recipe for choice in labels.values()]
        return tuple(recipe for recipe in dict.fromkeys(named) if recipe)

    def _axis(self, axis: str, content: Any) -> dict[str, _Choice]:
        key = f"axes.{axis}"
        if not isinstance(content, dict) or not content:
            raise self.error(key, f" must map labels to lists of overrides, got {content}")
        for label in content:
            if not NAME.fullmatch(str(label)):
                rule = "must consist of letters, digits, '.', '_' and '-': it names runs"
                raise self.error(key, f": label '{label}' {rule}")
        return {str(k): self._choice(f"{key}.{k}", choice) for k, choice in content.items()}

    def _choice(self, key: str, content: Any) -> _Choice:
        if not isinstance(content, dict):
            return _Choice(None, self.override_list(key, content))
        if unknown := sorted(content.keys() - {"recipe", "overrides"}):
            raise self.error(key, f" has no key '{unknown[0]}': there are recipe, overrides")
        return _Choice(content.get("recipe"), self.override_list(key, content.get("overrides")))

    def override_list(self, key: str, content: Any) -> tuple[str, ...]:
        content = [] if content is None else content
        if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
            raise self.error(key, f" must be a list of section.field=value, got {content}")
        self.check_overrides(key, content)
        return tuple(content)

    def check_overrides(self, key: str, overrides: Sequence[str]) -> None:
        for text in overrides:
            for option, reason in RESERVED.items():
                if text.partition("=")[0].strip() == option:
                    raise self.error(key, f": {text} cannot be set: {reason}")
            if key != "overrides" and text.startswith(SHARED_BY_CELLS):
                raise self.error(key, f": {text} is of the whole study: move it to overrides")

    def cells(
        self, axes: Mapping[str, Mapping[str, _Choice]], common: tuple[str, ...]
    ) -> tuple[Cell, ...]:
        cells = [
            Cell(dict(zip(axes, labels, strict=True)), self._experiment(common, labels, choices))
            for labels, choices in (
                zip(*combination, strict=True)
                for combination in itertools.product(*(axis.items() for axis in axes.values()))
            )
        ]
        names = [cell.name for cell in cells]
        for name in names:
            if names.count(name) > 1:
                raise self.error("axes", f": two cells would be called '{name}': rename a label")
        tracking = cells[0].experiment.tracking  # recipes in files may have others
        return tuple(
            Cell(c.labels, c.experiment.model_copy(update={"tracking": tracking})) for c in cells
        )

    def _experiment(
        self, common: tuple[str, ...], labels: Iterable[str], choices: Iterable[_Choice]
    ) -> Experiment:
        recipe, overrides = self.recipe, list(common)
        for choice in choices:
            recipe = choice.recipe or recipe
            overrides += choice.overrides
        if not isinstance(recipe, str):
            raise self.error("recipe", f" must be a recipe's name or a YAML file, got {recipe}")
        try:
            # A study selects nothing, so that it evaluates on test data.
            whole = [*overrides, *self.overrides, "data.validation_split=null"]
            return with_overrides(load_recipe(recipe), whole)
        except ValueError as error:
            raise self.error(f"cell {'-'.join(labels)}", f": {error}") from None

    def seeds(self, content: Any) -> tuple[int, ...]:
        seeds = list(range(content)) if _is_whole(content) else content
        if (
            not isinstance(seeds, list)
            or not seeds
            or not all(map(_is_whole, seeds))
            or len(set(seeds)) < len(seeds)
        ):
            raise self.error(
                "seeds", f" ({content}) must be a number of seeds, or a list of different ones"
            )
        return tuple(seeds)

    def compare(
        self, content: Any, axis: tuple[str, Mapping[str, _Choice]]
    ) -> tuple[tuple[str, str], ...]:
        name, labels = axis[0], list(axis[1])
        pairs = [[other, labels[0]] for other in labels[1:]] if content is None else content
        if not isinstance(pairs, list):
            raise self.error("compare", f" must be a list of pairs of labels, got {pairs}")
        for pair in pairs:
            known = isinstance(pair, list) and {str(label) for label in pair} <= set(labels)
            if not known or len(pair) != 2 or pair[0] == pair[1]:
                rule = f"must be two of the labels of {name}: {', '.join(labels)}"
                raise self.error("compare", f": {pair} {rule}")
        return tuple((str(first), str(second)) for first, second in pairs)

    def shards(self, content: Any) -> dict[str, str]:
        if not isinstance(content, dict) or not all(
            isinstance(part, str) for pair in content.items() for part in pair
        ):
            raise self.error("shards", f" must map data.path to a command, got {content}")
        return dict(content)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
