"""Who chooses the next point: by chance, from a grid, or by TPE from what was found."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from bcl_ray.experiment.choices import code
from bcl_ray.machine.errors import UserError
from bcl_ray.tuning.choices import SEARCHERS
from bcl_ray.tuning.space import Parameter, Point, Space

Status = Literal["running", "finished", "stopped", "failed"]


class Searcher(Protocol):
    """Chooses points, which need not be told of all results."""

    def ask(self, number: int) -> Point | None:
        """The point of a trial, numbered from 1; None when there are no more."""

    def tell(self, number: int, point: Point, scores: Mapping[int, float], status: Status) -> None:
        """What became of a trial: its score by epochs done."""


class Random:
    """Points by chance, each a function of the seed and the trial's number."""

    def __init__(self, space: Space, seed: int, _known: int = 0) -> None:
        self._space, self._seed = space, seed

    def ask(self, number: int) -> Point | None:
        """The point of a trial."""
        return self._space.sample(self._seed, number)

    def tell(self, number: int, point: Point, scores: Mapping[int, float], status: Status) -> None:
        """Nothing is learned."""


class Grid:
    """All points of a grid, in order.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, space: Space, _seed: int = 0, _known: int = 0) -> None:
        self._points = list(space.grid())
        if not self._points:
            raise UserError("the grid has no point that the configuration allows: widen --space")

    def ask(self, number: int) -> Point | None:
        """The point of a trial, if the grid has so many."""
        return self._points[number - 1] if number <= len(self._points) else None

    def tell(self, number: int, point: Point, scores: Mapping[int, float], status: Status) -> None:
        """Nothing is learned."""


class Tpe:
    """Optuna's tree-structured Parzen estimator, all options together.

    Bergstra et al., NeurIPS 2011; Falkner et al., ICML 2018, for several options together.

    Args:
        space: of the points.
        seed: of the choice. A resumed search draws other numbers than from its beginning.
        known: trials that will be told of before the first question.
    """

    def __init__(self, space: Space, seed: int, known: int = 0) -> None:
        import optuna  # noqa: PLC0415  an extra, which only this searcher needs

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space = optuna, space
        self._distributions = {p.name: _distribution(optuna, p) for p in space.parameters}
        # Several trials run at once: those that have not ended count as bad (constant_liar).
        sampler = optuna.samplers.TPESampler(
            seed=seed + known, multivariate=True, constant_liar=True, n_startup_trials=8
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, Any] = {}

    def ask(self, number: int) -> Point | None:
        """The next point that makes an experiment."""
        for _ in range(1000):
            trial = self._study.ask(self._distributions)
            point = {p.name: _value(p, trial.params[p.name]) for p in self._space.parameters}
            if self._space.allows(point):
                self._asked[number] = trial
                return point
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        raise UserError(f"TPE finds no point that is allowed: {self._space.refusal(point)}")

    def tell(self, number: int, point: Point, scores: Mapping[int, float], status: Status) -> None:
        """What became of a trial, whether it was asked for here or in an earlier process."""
        states = self._optuna.trial.TrialState
        failed = status == "failed" or not scores
        pruned = not failed and status == "stopped"
        state = states.FAIL if failed else states.PRUNED if pruned else states.COMPLETE
        if trial := self._asked.pop(number, None):
            for epoch, score in scores.items():
                trial.report(score, epoch)
            value = scores[max(scores)] if state == states.COMPLETE else None
            self._study.tell(trial, value, state=state)
            return
        try:
            parameters = {p.name: _inner(p, point[p.name]) for p in self._space.parameters}
            made = self._optuna.trial.create_trial(
                params=parameters,
                distributions=self._distributions,
                value=scores[max(scores)] if state == states.COMPLETE else None,
                intermediate_values=dict(scores),
                state=state,
            )
        except ValueError:  # published values may lie outside of the space
            return
        self._study.add_trial(made)


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    distributions = optuna.distributions
    if parameter.kind == "choice":  # by number: Optuna takes no lists
        return distributions.CategoricalDistribution(tuple(range(len(parameter.values))))
    low, high = parameter.values
    if parameter.kind == "integer":
        return distributions.IntDistribution(low, high)
    return distributions.FloatDistribution(low, high, log=parameter.kind == "log_uniform")


def _value(parameter: Parameter, chosen: Any) -> Any:
    """An option's value from Optuna's."""
    if parameter.kind == "choice":
        return parameter.values[chosen]
    return parameter.rounded(chosen) if parameter.kind != "integer" else chosen


def _inner(parameter: Parameter, value: Any) -> Any:
    """Optuna's value from an option's."""
    return parameter.values.index(value) if parameter.kind == "choice" else value


def make_searcher(name: str, space: Space, seed: int, known: int = 0) -> Searcher:
    """A searcher of SEARCHERS.

    Args:
        name: of it.
        space: of the points.
        seed: of the choice.
        known: trials that it will be told of before the first question.

    Raises:
        ValueError: no such searcher, or a grid of no points.
        ModuleNotFoundError: tpe without Optuna.
    """
    searcher: Searcher = code(SEARCHERS[name].make)(space, seed, known)
    return searcher
