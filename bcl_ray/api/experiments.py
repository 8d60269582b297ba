"""Make an experiment from a recipe, and plan its run."""

from typing import TYPE_CHECKING

from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import load_recipe

if TYPE_CHECKING:
    from bcl_ray.runs.budget import Budget


def recipe(name: str, *overrides: str) -> Experiment:
    """A complete experiment.

        bcl_ray.recipe("cifar100_lt", "data.path=data/mine", "train.epochs=100")

    Args:
        name: Name of a recipe, or path or URI of a YAML file.
        overrides: Changes, "section.field=value", in their order.

    Raises:
        ValueError: There is no such recipe or option, or a value is out of range.
    """
    return with_overrides(load_recipe(name), overrides)


def plan(experiment: Experiment) -> "tuple[Budget, float | None]":
    """Check a run and compute what it needs, without starting it.

    Args:
        experiment: The experiment of the run.

    Returns:
        Steps, images, bytes and CPUs of the run, and the size of this machine's object store in
        bytes, or None if it is not known.

    Raises:
        ValueError: The run cannot work; the message names the option to change.
    """
    from bcl_ray.data.shards import read_manifest
    from bcl_ray.runs.budget import preflight

    experiment = resolved(experiment)
    manifest = read_manifest(experiment.data.path)
    budget_and_store = preflight(experiment, manifest)
    if experiment.is_resident:
        from bcl_ray.training.resident_images import check_residency

        check_residency(experiment, manifest)
    return budget_and_store
