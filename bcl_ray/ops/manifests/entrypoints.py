"""The `bcl-ray` command of each job, and the names of RayJobs."""

import hashlib
import re
import shlex
from collections.abc import Callable

from bcl_ray.ops.manifests.description import ClusterDescription

MAX_NAME_LENGTH = 47  # of a RayJob


def _train(description: ClusterDescription, uri: str, gpus: int, words: list[str]) -> list[str]:
    options = (f"tracking.run={description.job.run}", description.job.scale)
    return [*_experiment(description, uri, gpus, *options), "--restartable", *words]


def _experiment(description: ClusterDescription, uri: str, gpus: int, *options: str) -> list[str]:
    job = description.job
    return [
        job.recipe,
        *job.overrides,
        f"data.path={uri}/shards/{job.experiment().name}",
        f"tracking.runs={uri}/runs",
        *options,
        f"scale.device={'cuda' if gpus else 'cpu'}",
        f"scale.wait_timeout={job.wait_minutes * 60}",
    ]


def _shard(description: ClusterDescription, uri: str, _: int, words: list[str]) -> list[str]:
    target = f"{uri}/shards/{description.job.experiment().name}"
    return [*words[:1], target, *words[1:]]


def _search(description: ClusterDescription, uri: str, gpus: int, words: list[str]) -> list[str]:
    name = f"{description.job.run}-search"
    return [*_experiment(description, uri, gpus), "--name", name, "--restartable", *words]


def _evaluate(description: ClusterDescription, uri: str, _: int, words: list[str]) -> list[str]:
    return [f"{uri}/runs/{description.job.run}", *words]


def _predict(description: ClusterDescription, uri: str, _: int, words: list[str]) -> list[str]:
    run = description.job.run
    model, results = f"{uri}/runs/{run}", f"{uri}/predictions/{run}"
    return [model, *words[:1], results, *words[1:], "--resume"]


# In the order of their use. A repeated command continues what it finds, or begins again and does
# no harm by it.
COMMANDS: dict[str, Callable[[ClusterDescription, str, int, list[str]], list[str]]] = {
    "shard": _shard,
    "train": _train,
    "search": _search,
    "evaluate": _evaluate,
    "predict": _predict,
}
WITHOUT_WORKERS = ("shard",)  # one process on the head


def command_names(description: ClusterDescription) -> list[str]:
    """The commands that have a RayJob: `train`, and those in the section `jobs`."""
    names = {"train", *description.jobs.model_dump(exclude_none=True)}
    return [command for command in COMMANDS if command in names]


def entrypoint(
    description: ClusterDescription, command: str = "train", *, uri: str, gpus: int
) -> list[str]:
    """The words of a job's command.

    Args:
        description: The cluster.
        command: One of COMMANDS.
        uri: The folder that has shards/, runs/ and predictions/.
        gpus: GPUs of a training node; 0: workers train on CPUs.
    """
    words = shlex.split(getattr(description.jobs, command, None) or "")
    return ["bcl-ray", command, *COMMANDS[command](description, uri, gpus, words)]


def commands(description: ClusterDescription) -> dict[str, list[str]]:
    """The arguments of each command that has a RayJob."""
    uri, gpus = description.object_store.uri, description.gpu.gpus
    return {
        command: entrypoint(description, command, uri=uri, gpus=gpus)[2:]
        for command in command_names(description)
    }


def job_name(description: ClusterDescription, command: str = "train") -> str:
    """The name of a RayJob, from its command and its run.

    Each run needs a name of its own, because KubeRay never starts an ended RayJob again. A name has
    at most 47 characters, and only those of a DNS label (RFC 1035). If the name of the run has
    other characters, or is too long, a hash of it makes the result unique.
    """
    job = description.job
    subject = job.experiment().name.replace("_", "-") if command == "shard" else job.run
    name = f"{command}-{re.sub('[^a-z0-9]+', '-', subject)}"
    if name == f"{command}-{subject}".rstrip("-") and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(subject.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME_LENGTH - 9].rstrip('-')}-{digest}"
