"""The methods that choose the values of trials, and those that stop trials early, by name."""

from dataclasses import dataclass

from bcl_ray.experiment.table import Choice, Code, Table


@dataclass(frozen=True)
class Method(Choice):
    """A choice of `--searcher` or `--scheduler`."""

    make: Code  # called by `make_sampler` or `make_scheduler`


_SAMPLERS, _SCHEDULERS = "bcl_ray.tuning.samplers:", "bcl_ray.tuning.schedulers:"
SEARCHERS = Table(
    "--searcher",
    Method("random", "at random", f"{_SAMPLERS}RandomSampler"),
    Method("grid", "all points of a grid, in order", f"{_SAMPLERS}GridSampler"),
    Method("tpe", "Optuna's TPE, which learns from all trials", f"{_SAMPLERS}TpeSampler"),
)
SCHEDULERS = Table(
    "--scheduler",
    Method("asha", "asynchronous successive halving", f"{_SCHEDULERS}asha"),
    Method("hyperband", "asynchronous successive halving in brackets", f"{_SCHEDULERS}hyperband"),
    Method("median", "stops trials below the median of the others' means", f"{_SCHEDULERS}median"),
    Method("none", "stops no trial", f"{_SCHEDULERS}none"),
)
