"""An sbatch script: Ray on the nodes of one allocation, for one training."""

import shlex
from importlib.resources import files
from string import Template

from bcl_ray.render.description import Description, Slurm
from bcl_ray.render.jobs import Job, entrypoint

TEMPLATE = "slurm.sbatch.template"
END_SECONDS = 60  # from the driver's end to the step's


def script(description: Description, note: str) -> str:
    """The script that trains the description's job, over as many allocations as it takes.

    Raises:
        ValueError: the description has no section slurm, or GPUs that nobody uses or too few.
    """
    slurm, job = description.slurm, description.job
    if slurm is None:
        raise ValueError("the description has no section slurm: add slurm.nodes and slurm.folder")
    _check_gpus(job, slurm)
    options = {
        "job-name": description.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "exclusive": "",
        "gpus-per-node": slurm.gpus_per_node or None,
        "time": f"{job.hours}:00:00",
        "signal": f"B:USR1@{job.notice_seconds + END_SECONDS}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{slurm.folder}/slurm-%j.log",
    }
    lines = [
        f"#SBATCH --{name}{f'={value}' if value != '' else ''}"
        for name, value in options.items()
        if value is not None
    ]
    tracking = description.tracking.uri
    return Template(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")).substitute(
        note=note,
        options="\n".join(lines),
        folder=slurm.folder,
        setup="\n".join(slurm.setup) or ":",
        tracking=f"export MLFLOW_TRACKING_URI={shlex.quote(tracking)}"
        if tracking
        else "# MLflow: SQLite in runs/, written by the driver alone.",
        wait=slurm.wait_seconds,
        notice=job.notice_seconds,
        gpus=slurm.gpus_per_node,
        command=shlex.join(
            entrypoint(description, uri=f"file://{slurm.folder}", gpus=slurm.gpus_per_node)
        ),
    )


def _check_gpus(job: Job, slurm: Slurm) -> None:
    workers, gpus = job.experiment().scale.max_workers, slurm.nodes * slurm.gpus_per_node
    if gpus not in (0, workers):
        raise ValueError(
            f"job.workers ({workers}) must be slurm.nodes x slurm.gpus_per_node ({gpus}), a worker "
            "on each GPU of the allocation: change one of them"
        )
