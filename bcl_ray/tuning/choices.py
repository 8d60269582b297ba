"""The methods that choose the values of trials, and those that stop trials early, by name."""

from dataclasses import dataclass

from bcl_ray.experiment.choices import Choice, Code, Table


@dataclass(frozen=True)
class SearcherKind(Choice):
    """A choice of `--searcher`."""

    make: Code  # called with (space, seed, number of earlier trials), returns a `Sampler`


@dataclass(frozen=True)
class SchedulerKind(Choice):
    """A choice of `--scheduler`."""

    make: Code  # called with a TrainConfig, returns a scheduler of Ray Tune


_SAMPLERS, _SCHEDULERS = "bcl_ray.tuning.samplers:", "bcl_ray.tuning.schedulers:"
SEARCHERS = Table(
    "--searcher",
    SearcherKind("random", "at random", f"{_SAMPLERS}RandomSampler"),
    SearcherKind("grid", "all points of a grid, in order", f"{_SAMPLERS}GridSampler"),
    SearcherKind("tpe", "Optuna's TPE, which learns from all trials", f"{_SAMPLERS}TpeSampler"),
)
SCHEDULERS = Table(
    "--scheduler",
    SchedulerKind("asha", "asynchronous successive halving", f"{_SCHEDULERS}asha"),
    SchedulerKind(
        "hyperband", "asynchronous successive halving in brackets", f"{_SCHEDULERS}hyperband"
    ),
    SchedulerKind(
        "median", "stops trials below the median of the others' means", f"{_SCHEDULERS}median"
    ),
    SchedulerKind("none", "stops no trial", f"{_SCHEDULERS}none"),
)
