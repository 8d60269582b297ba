"""The methods that choose the point of the next trial: random, grid, and TPE."""

from collections.abc import Mapping
from typing import Any

from bcl_ray.experiment.table import code
from bcl_ray.machine.errors import UserError
from bcl_ray.tuning.choices import SEARCHERS
from bcl_ray.tuning.space import Parameter, Point, Space
from bcl_ray.tuning.trials import Status

MAX_ATTEMPTS = 1000  # points that TPE may propose for a trial until one is a valid experiment


class Sampler:
    """Chooses the points of trials; trial 0 has the published values."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def ask(self, number: int) -> Point | None:
        """The point of a trial; None when there are no more points."""
        return self._space.published if number == 0 else self._choose(number)

    def _choose(self, number: int) -> Point | None:
        """The point of a trial, numbered from 1; None when there are no more points."""
        raise NotImplementedError

    def tell(self, number: int, point: Point, scores: Mapping[int, float], status: Status) -> None:
        """Learn from a trial that has ended; by default, nothing is learned.

        Args:
            number: Number of the trial.
            point: Point of the trial.
            scores: Score by the number of epochs done.
            status: How the trial ended.
        """


class RandomSampler(Sampler):
    """Independent random points, each a function of the seed and the trial's number."""

    def __init__(self, space: Space, seed: int, _earlier: int) -> None:
        super().__init__(space)
        self._seed = seed

    def _choose(self, number: int) -> Point | None:
        return self._space.sample(self._seed, number)


class GridSampler(Sampler):
    """All points of a grid, in order.

    Raises:
        ValueError: The grid is empty.
    """

    def __init__(self, space: Space, _seed: int, _earlier: int) -> None:
        super().__init__(space)
        self._points = list(space.grid())
        if not self._points:
            raise UserError("the grid has no point that the configuration allows: widen --space")

    def _choose(self, number: int) -> Point | None:
        return self._points[number - 1] if number <= len(self._points) else None


class TpeSampler(Sampler):
    """Optuna's tree-structured Parzen estimator, over all options jointly.

    Bergstra et al., NeurIPS 2011; Falkner et al., ICML 2018, for the joint estimate.

    Args:
        space: Space of the points.
        seed: Seed of the sampler.
        earlier: Number of trials of earlier processes, which `tell` gets before the first `ask`.
            It is added to the seed, so that a resumed search does not draw the same points again.
    """

    def __init__(self, space: Space, seed: int, earlier: int) -> None:
        import optuna  # noqa: PLC0415  an extra, which only this sampler needs

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        super().__init__(space)
        self._optuna = optuna
        self._distributions = {p.name: _distribution(optuna, p) for p in space.parameters}
        # Several trials run at once: constant_liar counts a running trial as a bad one.
        sampler = optuna.samplers.TPESampler(
            seed=seed + earlier, multivariate=True, constant_liar=True, n_startup_trials=8
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._open_trials: dict[int, Any] = {}  # Optuna's trials by our number

    def _choose(self, number: int) -> Point | None:
        """The next point that is a valid experiment.

        Raises:
            ValueError: None of the proposed points is valid.
        """
        for _ in range(MAX_ATTEMPTS):
            trial = self._study.ask(self._distributions)
            point = {p.name: _from_optuna(p, trial.params[p.name]) for p in self._space.parameters}
            if self._space.allows(point):
                self._open_trials[number] = trial
                return point
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        raise UserError(f"TPE finds no point that is allowed: {self._space.refusal(point)}")

    def tell(self, number: int, point: Point, scores: Mapping[int, float], status: Status) -> None:
        """Learn from a trial that has ended, of this process or of an earlier one."""
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "stopped": states.PRUNED}.get(status, states.FAIL)
        if not scores:
            state = states.FAIL
        last_score = scores[max(scores)] if state == states.COMPLETE else None
        if trial := self._open_trials.pop(number, None):
            for epoch, score in scores.items():
                trial.report(score, epoch)
            self._study.tell(trial, last_score, state=state)
            return
        try:
            parameters = {p.name: _to_optuna(p, point[p.name]) for p in self._space.parameters}
            earlier_trial = self._optuna.trial.create_trial(
                params=parameters,
                distributions=self._distributions,
                value=last_score,
                intermediate_values=dict(scores),
                state=state,
            )
        except ValueError:  # published values may lie outside of the space
            return
        self._study.add_trial(earlier_trial)


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    distributions = optuna.distributions
    if parameter.kind == "choice":  # by position, because Optuna takes no lists as values
        return distributions.CategoricalDistribution(tuple(range(len(parameter.values))))
    low, high = parameter.values
    if parameter.kind == "integer":
        return distributions.IntDistribution(low, high)
    return distributions.FloatDistribution(low, high, log=parameter.kind == "log_uniform")


def _from_optuna(parameter: Parameter, value: Any) -> Any:
    if parameter.kind == "choice":
        return parameter.values[value]
    return parameter.rounded(value) if parameter.kind != "integer" else value


def _to_optuna(parameter: Parameter, value: Any) -> Any:
    return parameter.values.index(value) if parameter.kind == "choice" else value


def make_sampler(name: str, space: Space, seed: int, earlier: int = 0) -> Sampler:
    """Build a sampler by its name in SEARCHERS.

    Args:
        name: Name in SEARCHERS.
        space: Space of the points.
        seed: Seed of the sampler.
        earlier: Number of trials of earlier processes, which `tell` gets before the first `ask`.

    Raises:
        ValueError: There is no such sampler, or the grid is empty.
        ModuleNotFoundError: Optuna, which `tpe` needs, is not installed.
    """
    sampler: Sampler = code(SEARCHERS[name].make)(space, seed, earlier)
    return sampler
