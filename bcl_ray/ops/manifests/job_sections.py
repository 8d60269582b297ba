"""The sections of a description that say what the cluster runs."""

import shlex
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.options import Experiment, Section, Workers
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES, suggest_recipe
from bcl_ray.machine.errors import UserError

RUN_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
# Options of the training that follow from other fields of a description.
DERIVED_OPTIONS = (
    "data.path",
    "tracking.runs",
    "tracking.run",
    "tracking.uri",
    "scale.workers",
    "scale.device",
    "scale.wait_timeout",
)


class Job(Section):
    """The training that a RayJob or the sbatch script submits."""

    recipe: str = Field(description="Name of a recipe.")
    overrides: tuple[str, ...] = Field(
        (), description="Changes to the recipe, each section.field=value."
    )
    run: str = Field(
        pattern=RUN_NAME,
        max_length=63,
        description="Name of the run; a repeated submission continues the run of this name.",
    )
    workers: Workers | tuple[Workers, Workers] = Field(
        description="Ray Train workers, or [fewest, most] of them; one GPU each."
    )
    retries: int = Field(3, ge=0, description="New clusters after one that failed.")
    wait_minutes: int = Field(
        60, ge=1, description="Longest wait for nodes before the training, in minutes."
    )
    hours: int = Field(
        ge=1, description="Longest time of a submission including its wait, in hours."
    )
    keep_minutes: int = Field(
        60,
        ge=1,
        description="Kubernetes: minutes for which the head of an ended job stays, with its logs.",
    )
    notice_seconds: int = Field(
        90,
        ge=30,
        le=3600,
        description="Seconds between the notice to a node or a driver and its end.",
    )

    @model_validator(mode="after")
    def _valid_experiment(self) -> "Job":
        if self.recipe not in RECIPES:
            raise UserError(
                f"job.recipe '{self.recipe}' is no recipe: {suggest_recipe(self.recipe)}"
            )
        for override in self.overrides:
            option = override.partition("=")[0]
            if option.strip() in DERIVED_OPTIONS:
                raise UserError(
                    f"job.overrides must not set {option}: it follows from the rest of the "
                    "description"
                )
        try:
            self.experiment()
        except ValueError as error:
            raise UserError(f"job: {error}") from None
        return self

    def experiment(self) -> Experiment:
        """The experiment that the job trains."""
        return with_overrides(RECIPES[self.recipe](), [*self.overrides, self.scale])

    @property
    def scale(self) -> str:
        """The override that sets the number of workers."""
        workers = self.workers
        return f"scale.workers={workers if isinstance(workers, int) else [*workers]}"


def _check_quotes(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise UserError(f"cannot be split into words ({str(error).lower()})") from None
    return text


Words = Annotated[str, AfterValidator(_check_quotes)]


class Jobs(Section):
    """Kubernetes: further RayJobs, each with the arguments that the description does not imply.

    The locations of shards, runs and predictions follow from `object_store.uri` and `job`.
    """

    shard: Words | None = Field(
        None, description="SOURCE and options of `bcl-ray shard`, without TARGET."
    )
    search: Words | None = Field(
        None, description="Options of `bcl-ray search`, which varies job.recipe."
    )
    evaluate: Words | None = Field(
        None, description="Options of `bcl-ray evaluate`, which evaluates job.run."
    )
    predict: Words | None = Field(
        None, description="INPUT and options of `bcl-ray predict`, with the model of job.run."
    )
