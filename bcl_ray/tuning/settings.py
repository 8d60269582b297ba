"""The settings of a search, and a check of them before Ray starts."""

from dataclasses import dataclass

from bcl_ray.experiment.metric_names import ACCURACY
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.options.section import NAME
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What determines the trials of a search and how they are compared."""

    space: str | None = None  # YAML, as `parse_space` takes it; None: the options of the loss
    searcher: str = "random"  # a name in SEARCHERS
    scheduler: str = "asha"  # a name in SCHEDULERS
    metric: str = ACCURACY  # as `parse_score` takes it
    # Share of each class that is cut from the training split for validation. A data set that has
    # a validation split of its own does not need it.
    validation: float = 0.2
    seed: int = 0  # of the searcher and of the validation cut


@dataclass(frozen=True)
class Extent:
    """The size of a search, and the resources of its trials; neither changes what a trial is."""

    trials: int = 20  # in all, the one with the published values included
    workers: int = 1  # of each trial
    gpus_per_worker: float | None = None  # share of a GPU; None: as in the experiment
    max_concurrent: int | None = None  # trials at once, at most; None: as many as fit
    confirm: tuple[int, int] | None = None  # (k, n): repeat the best k with n other seeds each

    def of_trial(self, experiment: Experiment) -> Experiment:
        """The experiment with the workers of a trial.

        Raises:
            ValueError: The experiment cannot have these workers.
        """
        share = self.gpus_per_worker
        if share is None:
            share = experiment.scale.gpus_per_worker
        changes = [f"scale.workers={self.workers}", f"scale.gpus_per_worker={share}"]
        return with_overrides(experiment, changes)


def check_name(name: str) -> None:
    """Refuse a name that a search or a study cannot have.

    Raises:
        ValueError: It has other characters.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name '{name}' must consist of letters, digits, '.', '_' and '-'")
