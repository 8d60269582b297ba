"""What a cluster runs: the training that a description names, and the commands around it."""

import hashlib
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.options import Experiment, Section, Workers
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES, suggest_recipe
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from bcl_ray.ops.manifests.description import ClusterDescription

RUN_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
LONGEST_NAME = 47  # of a RayJob
FOLLOWS = (  # options of the job that the rest of a description decides on
    "data.path",
    "tracking.runs",
    "tracking.run",
    "tracking.uri",
    "scale.workers",
    "scale.device",
    "scale.wait_timeout",
)


class Job(Section):
    """The training that RayJob and the sbatch script submit."""

    recipe: str = Field(description="A recipe's name.")
    overrides: tuple[str, ...] = Field((), description="Changes, each section.field=value.")
    run: str = Field(
        pattern=RUN_NAME,
        max_length=63,
        description="Name of the run: a submission that is repeated goes on with it.",
    )
    workers: Workers | tuple[Workers, Workers] = Field(
        description="Ray Train workers, or [least, most] of them; one GPU each."
    )
    retries: int = Field(3, ge=0, description="New clusters after one that failed.")
    wait_minutes: int = Field(60, ge=1, description="Longest wait for nodes before training.")
    hours: int = Field(ge=1, description="Longest time of a submission, waiting included.")
    keep_minutes: int = Field(
        60, ge=1, description="Kubernetes: how long an ended job's head stays, with its logs."
    )
    notice_seconds: int = Field(
        90, ge=30, le=3600, description="From the notice to leave to the end of a node or driver."
    )

    @model_validator(mode="after")
    def _known(self) -> "Job":
        if self.recipe not in RECIPES:
            raise UserError(
                f"job.recipe '{self.recipe}' is no recipe: {suggest_recipe(self.recipe)}"
            )
        for override in self.overrides:
            if override.partition("=")[0].strip() in FOLLOWS:
                raise UserError(
                    f"job.overrides must not set {override.partition('=')[0]}: it follows from "
                    "the rest of the description"
                )
        try:
            self.experiment()
        except ValueError as error:
            raise UserError(f"job: {error}") from None
        return self

    def experiment(self) -> Experiment:
        """What the job trains."""
        return with_overrides(RECIPES[self.recipe](), [*self.overrides, self.scale])

    @property
    def scale(self) -> str:
        """The option that sets the number of workers."""
        workers = self.workers
        return f"scale.workers={workers if isinstance(workers, int) else [*workers]}"


def _words(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise UserError(f"cannot be split into words ({str(error).lower()})") from None
    return text


Words = Annotated[str, AfterValidator(_words)]


class Jobs(Section):
    """Kubernetes: RayJobs beside the training's, each with the words that its command still needs.

    Shards, run, model and results are where `object_store.uri` and `job` say.
    """

    shard: Words | None = Field(
        None, description="SOURCE and options of `bcl-ray shard`, without its target."
    )
    search: Words | None = Field(None, description="Options of `bcl-ray search` around job.recipe.")
    evaluate: Words | None = Field(None, description="Options of `bcl-ray evaluate` of job.run.")
    predict: Words | None = Field(
        None, description="INPUT and options of `bcl-ray predict` by the model of job.run."
    )


def _train(description: "ClusterDescription", uri: str, gpus: int, words: list[str]) -> list[str]:
    own = (f"tracking.run={description.job.run}", description.job.scale)
    return [*_experiment(description, uri, gpus, *own), "--restartable", *words]


def _experiment(description: "ClusterDescription", uri: str, gpus: int, *own: str) -> list[str]:
    job = description.job
    return [
        job.recipe,
        *job.overrides,
        f"data.path={uri}/shards/{job.experiment().name}",
        f"tracking.runs={uri}/runs",
        *own,
        f"scale.device={'cuda' if gpus else 'cpu'}",
        f"scale.wait_timeout={job.wait_minutes * 60}",
    ]


def _shard(description: "ClusterDescription", uri: str, _: int, words: list[str]) -> list[str]:
    target = f"{uri}/shards/{description.job.experiment().name}"
    return [*words[:1], target, *words[1:]]


def _search(description: "ClusterDescription", uri: str, gpus: int, words: list[str]) -> list[str]:
    name = f"{description.job.run}-search"
    return [*_experiment(description, uri, gpus), "--name", name, "--restartable", *words]


def _evaluate(description: "ClusterDescription", uri: str, _: int, words: list[str]) -> list[str]:
    return [f"{uri}/runs/{description.job.run}", *words]


def _predict(description: "ClusterDescription", uri: str, _: int, words: list[str]) -> list[str]:
    run = description.job.run
    model, results = f"{uri}/runs/{run}", f"{uri}/predictions/{run}"
    return [model, *words[:1], results, *words[1:], "--resume"]


WITHOUT_WORKERS = ("shard",)  # one process, on the head
# Repeated, each goes on with what it finds, or begins again without harm.
COMMANDS: dict[str, Callable[["ClusterDescription", str, int, list[str]], list[str]]] = {
    "shard": _shard,
    "train": _train,
    "search": _search,
    "evaluate": _evaluate,
    "predict": _predict,
}


def kinds(description: "ClusterDescription") -> list[str]:
    """Commands that get a RayJob, in the order of their use."""
    wanted = description.jobs.model_dump(exclude_none=True)
    return [kind for kind in COMMANDS if kind == "train" or kind in wanted]


def entrypoint(
    description: "ClusterDescription", kind: str = "train", *, uri: str, gpus: int
) -> list[str]:
    """The command of a job; one that is repeated goes on.

    Args:
        description: of the cluster.
        kind: of COMMANDS.
        uri: above shards/, runs/ and predictions/.
        gpus: of a training node; 0: workers train on CPUs.
    """
    words = shlex.split(getattr(description.jobs, kind, None) or "")
    return ["bcl-ray", kind, *COMMANDS[kind](description, uri, gpus, words)]


def commands(description: "ClusterDescription") -> dict[str, list[str]]:
    """Arguments of each command that gets a RayJob."""
    uri, gpus = description.object_store.uri, description.gpu.gpus
    return {
        kind: entrypoint(description, kind, uri=uri, gpus=gpus)[2:] for kind in kinds(description)
    }


def job_name(description: "ClusterDescription", kind: str = "train") -> str:
    """A RayJob's name: of its kind and its run, for an ended one is never started again.

    At most 47 letters, of DNS-1035; where a run's name has others or more, it ends in a hash of it.
    """
    job = description.job
    subject = job.experiment().name.replace("_", "-") if kind == "shard" else job.run
    name = f"{kind}-{re.sub('[^a-z0-9]+', '-', subject)}"
    if name == f"{kind}-{subject}" and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(subject.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9].rstrip('-')}-{digest}"
