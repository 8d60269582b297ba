"""Experiments by name, and what one would need."""

from pathlib import Path
from typing import TYPE_CHECKING

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_file, from_yaml, with_overrides
from bcl_ray.experiment.recipes import RECIPES, suggest_recipe
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

if TYPE_CHECKING:
    from bcl_ray.runs.budget import Budget


def recipe(name: str, *overrides: str) -> Experiment:
    """A complete experiment.

        bcl_ray.recipe("cifar100_lt", "data.path=data/mine", "train.epochs=100")

    Args:
        name: of a recipe, or a YAML file or its URI.
        overrides: changes, "section.field=value", in order; values are YAML.

    Raises:
        ValueError: no such recipe or option, or a value out of range.
    """
    if name in RECIPES:
        experiment = RECIPES[name]()
    elif name.endswith((".yaml", ".yml")):
        # A search's winner may lie in a bucket.
        remote = "://" in name
        text = files.read_bytes(name).decode() if remote else ""
        experiment = from_yaml(text, origin=name) if remote else from_file(Path(name))
    else:
        raise UserError(f"'{name}' is no recipe and no .yaml file: {suggest_recipe(name)}")
    return with_overrides(experiment, overrides)


def plan(experiment: Experiment) -> "tuple[Budget, float | None]":
    """What a run needs; starts nothing.

    Returns:
        Steps, images, bytes and CPUs, and the bytes of this machine's object store, if known.

    Raises:
        ValueError: the run cannot work, with the option that is to be changed.
    """
    from bcl_ray.data.shards import read_manifest
    from bcl_ray.runs.budget import preflight

    manifest = read_manifest(experiment.data.path)
    found = preflight(experiment, manifest)
    if experiment.data.residency == "device":
        from bcl_ray.training.resident_images import check_residency

        check_residency(experiment, manifest)
    return found
