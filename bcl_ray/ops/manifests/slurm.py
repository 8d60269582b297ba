"""An sbatch script: Ray on the nodes of one allocation, for one training."""

import shlex
from importlib.resources import files
from string import Template

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.description import ClusterDescription, Slurm
from bcl_ray.ops.manifests.jobs import Job, entrypoint

TEMPLATE = "slurm.sbatch.template"
END_SECONDS = 60  # from the driver's end to the step's


def script(description: ClusterDescription, note: str) -> str:
    """The script that trains the description's job, over as many allocations as it takes.

    Raises:
        ValueError: the description has no section slurm, or GPUs that nobody uses or too few.
    """
    slurm, job = description.slurm, description.job
    if slurm is None:
        raise UserError("the description has no section slurm: add slurm.nodes and slurm.folder")
    _check_gpus(job, slurm)
    train = entrypoint(description, uri=f"file://{slurm.folder}", gpus=slurm.gpus_per_node)
    experiment = [word for word in train[2:] if word != "--restartable"]
    tracking = description.tracking.uri
    return Template(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")).substitute(
        note=note,
        options="\n".join(_options(description.name, job, slurm)),
        setup="\n".join(slurm.setup) or ":",
        folder=slurm.folder,
        tmp=slurm.tmp,
        tracking=f"export MLFLOW_TRACKING_URI={shlex.quote(tracking)}"
        if tracking
        else "# MLflow: SQLite in runs/, written by the driver alone.",
        # From 22.05 on, srun does not take it from sbatch.
        cpus=f" --cpus-per-task={slurm.cpus_per_node}" if slurm.cpus_per_node else "",
        container=f" {slurm.container}" if slurm.container else "",
        gpus=slurm.gpus_per_node,
        wait=slurm.wait_seconds,
        interface=f" --interface={slurm.interface}" if slurm.interface else "",
        retries=job.retries,
        experiment=shlex.join(experiment),
    )


def _options(name: str, job: Job, slurm: Slurm) -> list[str]:
    """The lines by which sbatch knows what the job needs; None leaves one out."""
    memory = f"{slurm.memory_gib}G" if slurm.memory_gib else ("0" if slurm.exclusive else None)
    gpus = slurm.gpus_per_node or None
    options: dict[str, object] = {
        "job-name": name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": slurm.cpus_per_node,
        "exclusive": "" if slurm.exclusive else None,
        "mem": memory,  # 0: all of it; without, a site's default
        "gres": slurm.gres,
        "gpus-per-node": None if slurm.gres else gpus,
        "time": f"{job.hours}:00:00",
        "signal": f"B:USR1@{job.notice_seconds + END_SECONDS}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{slurm.folder}/slurm-%j.log",
    }
    ours = [
        f"#SBATCH --{option}{f'={value}' if value != '' else ''}"
        for option, value in options.items()
        if value is not None
    ]
    return [*ours, *(f"#SBATCH {line}" for line in slurm.lines)]


def _check_gpus(job: Job, slurm: Slurm) -> None:
    workers, gpus = job.experiment().scale.max_workers, slurm.nodes * slurm.gpus_per_node
    if gpus not in (0, workers):
        raise UserError(
            f"job.workers ({workers}) must be slurm.nodes x slurm.gpus_per_node ({gpus}), a worker "
            "on each GPU of the allocation: change one of them"
        )
