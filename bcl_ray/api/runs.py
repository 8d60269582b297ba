"""Runs: train and evaluate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.api.experiments import plan
from bcl_ray.display.run import follower
from bcl_ray.display.terminal import console, quiet
from bcl_ray.experiment.options import Experiment, TrackingConfig
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.storage import paths


@dataclass(frozen=True)
class Trained:
    """A run that has come to its end."""

    experiment: Experiment
    run: str
    """Its name."""
    reference: str
    """What other functions and commands find it by: its name, or its folder's path or URI."""
    history: Sequence[Mapping[str, float]]
    """Metrics of each epoch."""
    report: str | None
    """File of the report, if one was drawn."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the last epoch, which is always evaluated: accuracy/all, accuracy/few and more."""
        return self.history[-1]


def train(
    experiment: Experiment | None = None,
    *,
    resume: str | None = None,
    overrides: Sequence[str] = (),
    restartable: bool = False,
) -> Trained:
    """Train, evaluate and track a run, on the cluster of RAY_ADDRESS, or on this machine.

        trained = bcl_ray.train(bcl_ray.recipe("digits_lt", "tracking.run=first"))

    Args:
        experiment: what to train; None with `resume`.
        resume: name, folder or URI of a run to continue.
        overrides: changes of the experiment; with `resume` only of scale, of tracking, and of
            where the data lie.
        restartable: continue the run `tracking.run`, if there is one, else begin it.

    Raises:
        ValueError: the run cannot work, or its name is taken; nothing was written.
        bcl_ray.training.outcome.TrainingError: the run began, and failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM came, and a last checkpoint was written: `resume`
            goes on from it.
    """
    if resume is not None and experiment is not None:
        raise UserError("experiment and resume exclude each other: a run keeps its experiment")
    if resume is not None:
        resume, experiment = _resumed(resume, overrides)
    elif experiment is None:
        raise UserError("train needs an experiment, or resume=RUN")
    else:
        experiment = with_overrides(experiment, overrides)
    if restartable and experiment.tracking.run is None:
        raise UserError("--restartable needs tracking.run=NAME, by which the run is found again")
    plan(experiment)  # refuses what cannot work in a moment, where Ray takes seconds to import
    quiet()
    from bcl_ray.training.driver import fit

    with follower(console()) as follow:
        ended = fit(experiment, follow=follow, resume=resume, restartable=restartable)
    return Trained(
        experiment, ended["run"], ended["reference"], ended["history"], ended["report"] or None
    )


def _resumed(resume: str, changes: Sequence[str]) -> tuple[str, Experiment]:
    """The folder of a run, wherever it lies now, and its experiment with changes."""
    roots = [change.partition("=")[2] for change in changes if change.startswith("tracking.runs=")]
    root = roots[-1] if roots else TrackingConfig().runs
    uri = paths.absolute(run_folder.run_uri(resume, root))
    _, experiment = run_folder.open_run(uri)
    return uri, with_overrides(experiment, [*changes, f"tracking.runs={paths.parent(uri)}"])


def evaluate(
    *models: str,
    runs: str = "runs",
    best: bool = False,
    data: str | None = None,
    split: str | None = None,
    out: Path | None = None,
) -> "dict[str, tuple[Experiment, dict[str, float]]]":
    """Evaluate models again, from their checkpoints.

    Args:
        models: runs by name, folder or URI; checkpoints' folders; or models:/NAME@ALIAS.
        runs: folder or URI that holds runs.
        best: of a run, take the best checkpoint instead of the last.
        data: shards to evaluate on instead of each model's own.
        split: of the shards, instead of the one that the run evaluated.
        out: folder for predictions, figures and a report.

    Returns:
        Of each model by its name: its experiment and its metrics.

    Raises:
        ValueError: no such model, or classes that it has not learned.
    """
    quiet()
    from bcl_ray.use.models import find_checkpoint

    for name in models:  # before Ray is imported, which takes seconds
        find_checkpoint(name, runs, last=not best)
    from bcl_ray.use.evaluate import evaluate_models

    found = evaluate_models(models, runs, best=best, data=data, split=split, out=out)
    return {model.name: (model.experiment, metrics) for model, metrics in found}
