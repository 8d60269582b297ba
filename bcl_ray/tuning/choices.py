"""Who chooses the values of trials, and which trials are stopped early, by name."""

from dataclasses import dataclass

from bcl_ray.experiment.choices import Choice, Code, Table


@dataclass(frozen=True)
class SearcherKind(Choice):
    """What `--searcher` stands for: called with (space, seed, known), it is a `Searcher`."""

    make: Code


@dataclass(frozen=True)
class SchedulerKind(Choice):
    """What `--scheduler` stands for: called with TrainConfig, it is a scheduler of Ray Tune."""

    make: Code


_SAMPLERS, _SCHEDULERS = "bcl_ray.tuning.samplers:", "bcl_ray.tuning.schedulers:"
SEARCHERS = Table(
    "--searcher",
    SearcherKind("random", "by chance", f"{_SAMPLERS}Random"),
    SearcherKind("grid", "all points of a grid, in order", f"{_SAMPLERS}Grid"),
    SearcherKind("tpe", "Optuna's TPE, which learns from all trials", f"{_SAMPLERS}Tpe"),
)
SCHEDULERS = Table(
    "--scheduler",
    SchedulerKind("asha", "asynchronous successive halving", f"{_SCHEDULERS}asha"),
    SchedulerKind("hyperband", "the same with brackets, HyperBand", f"{_SCHEDULERS}hyperband"),
    SchedulerKind(
        "median", "what is below the median of the others' means", f"{_SCHEDULERS}median"
    ),
    SchedulerKind("none", "no trial is stopped", f"{_SCHEDULERS}none"),
)
