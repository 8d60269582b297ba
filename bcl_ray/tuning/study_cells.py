"""A study: a grid of experiments, its cells, each of which is trained with several seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bcl_ray.experiment.options import Experiment


@dataclass(frozen=True)
class Cell:
    """An experiment of a study, which is trained once per seed."""

    labels: Mapping[str, str]
    """Its label on each axis."""
    experiment: Experiment

    @property
    def name(self) -> str:
        """Its labels, which also name its runs."""
        return "-".join(self.labels.values())

    def run_name(self, seed: int) -> str:
        """Name of its run with a seed."""
        return f"{self.name}-seed-{seed}"


@dataclass(frozen=True)
class Study:
    """What a study's file says, with complete experiments."""

    file: str
    overrides: tuple[str, ...]
    """Those of the command line, which the cells have already."""
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    compare: tuple[tuple[str, str], ...]
    """Pairs of labels of the first axis: the difference is the first one minus the second one."""
    recipes: tuple[str, ...] = ()
    """Names and files of the recipes that the cells begin with."""
    shards: Mapping[str, str] = field(default_factory=dict)
    """For values of data.path, the command that makes the data."""
    text: str = ""
    """The file's text, for the record: the file may change while the study runs."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self.cells[0].labels)
