"""Train and evaluate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.api.experiments import plan
from bcl_ray.display.run import RunDisplay
from bcl_ray.display.terminal import console, quiet
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.runs.events import receiver
from bcl_ray.storage import paths


@dataclass(frozen=True)
class Trained:
    """A completed run."""

    experiment: Experiment
    run: str
    """Name of the run."""
    reference: str
    """What other functions and commands take: the run's name, or the path or URI of its folder."""
    history: Sequence[Mapping[str, float]]
    """One record of metrics per epoch."""
    report: str | None
    """File of the report, if it was written."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the last epoch, which is always evaluated: accuracy/all and others."""
        return self.history[-1]


def train(
    experiment: Experiment | None = None,
    *,
    resume: str | None = None,
    overrides: Sequence[str] = (),
    restartable: bool = False,
) -> Trained:
    """Train, evaluate and track a run on the cluster of RAY_ADDRESS, or on this machine.

        trained = bcl_ray.train(bcl_ray.recipe("digits_lt", "tracking.run=first"))

    Args:
        experiment: The experiment to train; None with `resume`.
        resume: Name, folder or URI of a run to continue.
        overrides: Changes to the experiment, "section.field=value". With `resume`, only options of
            scale and tracking and the location of the data can change.
        restartable: Whether to continue the run `tracking.run` if it exists.

    Raises:
        ValueError: The run cannot work, or its name is in use; nothing was written.
        bcl_ray.training.outcome.TrainingError: The run has started and failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run after a last checkpoint, from which
            `resume` continues.
    """
    if resume is not None and experiment is not None:
        raise UserError(
            "experiment and resume exclude each other: a resumed run keeps its experiment"
        )
    if resume is not None:
        resume, experiment = _resumed(resume, overrides)
    elif experiment is None:
        raise UserError("train needs an experiment, or resume=RUN")
    else:
        experiment = with_overrides(experiment, overrides)
    if restartable and experiment.tracking.run is None:
        raise UserError("--restartable needs tracking.run=NAME, by which the run is found again")
    plan(experiment)  # fails before Ray is imported, which takes seconds
    quiet()
    from bcl_ray.training.driver import fit

    with receiver(RunDisplay(console())) as follow:
        end = fit(experiment, follow=follow, resume=resume, restartable=restartable)
    return Trained(experiment, end["run"], end["reference"], end["history"], end["report"] or None)


def _resumed(resume: str, changes: Sequence[str]) -> tuple[str, Experiment]:
    """The absolute path or URI of a run's folder, and its experiment with changes."""
    uri = paths.absolute(run_folder.resumed_uri(resume, changes))
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
    """Evaluate models from their checkpoints.

    Args:
        models: Runs by name, folder or URI; folders of checkpoints; or models:/NAME@ALIAS.
        runs: Folder or URI that holds runs.
        best: Whether to use a run's best checkpoint instead of its last.
        data: Folder or URI of shards to evaluate on; None for each model's own.
        split: Split of the shards; None for the one that the run evaluated on.
        out: Local folder for predictions, figures and a report; None to write none.

    Returns:
        The experiment and the metrics of each model, by its name.

    Raises:
        ValueError: There is no such model, or the data has classes that it has not learned.
    """
    quiet()
    from bcl_ray.use.models import open_model

    # It fails before Ray is imported, which takes seconds.
    opened = [open_model(name, runs, last=not best) for name in models]
    from bcl_ray.use.evaluate import evaluate_models

    results = evaluate_models(opened, models, data=data, split=split, out=out)
    return {model.name: (model.experiment, metrics) for model, metrics in results}
