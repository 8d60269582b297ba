"""What a search is to do: which trials, how they are compared, and how many of them."""

from dataclasses import dataclass

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides


@dataclass(frozen=True)
class Settings:
    """What determines which trials a search makes, and how they are compared.

    Args:
        space: YAML of `space`; None: the loss.
        searcher: a name in SEARCHERS.
        scheduler: a name in SCHEDULERS.
        metric: as `parse_score` takes it.
        validation: share of each class that is cut from the training split; unused where the data
            set has a validation split.
        seed: of the searcher and of the cut.
    """

    space: str | None = None
    searcher: str = "random"
    scheduler: str = "asha"
    metric: str = "accuracy/all"
    validation: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Extent:
    """How much is searched, and with what; none of it changes what a trial is.

    Args:
        trials: in all, with the published values.
        workers: of each trial.
        gpus_per_worker: share of a GPU; None: the experiment's.
        max_concurrent: trials at once, at most; None: as many as the cluster has room for.
        confirm: (k, n): train the best k again with n other seeds each.
    """

    trials: int = 20
    workers: int = 1
    gpus_per_worker: float | None = None
    max_concurrent: int | None = None
    confirm: tuple[int, int] | None = None

    def of_trial(self, experiment: Experiment) -> Experiment:
        """The experiment with a trial's workers.

        Raises:
            ValueError: it cannot have them.
        """
        share = self.gpus_per_worker or experiment.scale.gpus_per_worker
        changes = [f"scale.workers={self.workers}", f"scale.gpus_per_worker={share}"]
        return with_overrides(experiment, changes)
