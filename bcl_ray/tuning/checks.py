"""What can be wrong with a search, found before Ray starts."""

import re

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.shards import Manifest
from bcl_ray.data.shards.holdout import own_validation
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs.budget import preflight
from bcl_ray.tuning.choices import SCHEDULERS
from bcl_ray.tuning.samplers import make_searcher
from bcl_ray.tuning.score import parse_score
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.space import parse_space


def check(
    name: str,
    experiment: Experiment,
    settings: Settings,
    extent: Extent,
    manifest: Manifest,
    *,
    connected: bool = False,
) -> None:
    """Refuse what cannot work, before Ray starts.

    Args:
        name: of the search.
        experiment: what is searched around.
        settings: see there.
        extent: likewise.
        manifest: of the experiment's data.
        connected: this process uses a cluster already.

    Raises:
        ValueError: naming the option.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise UserError(f"--name '{name}' must consist of letters, digits, '.', '_' and '-'")
    if extent.trials < 1:
        raise UserError(f"--trials ({extent.trials}) must be at least 1")
    if experiment.tracking.run is not None:
        raise UserError(
            "tracking.run cannot be set: the search is named by --name, its trials by numbers"
        )
    data = experiment.data
    if own_validation(manifest, data.eval_split) is None and not 0 < settings.validation < 1:
        raise UserError(f"--validation ({settings.validation:g}) must be above 0 and below 1")
    trial = extent.of_trial(experiment)
    preflight(trial, manifest, connected=connected)
    groups = shot_groups(manifest.splits[data.train_split].class_counts)
    parse_score(settings.metric).check_known(["all", *groups])
    SCHEDULERS.checked(settings.scheduler)
    make_searcher(settings.searcher, parse_space(settings.space, trial), settings.seed)
