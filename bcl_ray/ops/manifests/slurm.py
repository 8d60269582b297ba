"""An sbatch script that starts Ray on the nodes of one allocation, for one training."""

import shlex

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.entrypoints import entrypoint
from bcl_ray.ops.manifests.job_sections import Job
from bcl_ray.ops.manifests.platforms import Slurm
from bcl_ray.ops.manifests.templating import render_template


def sbatch(description: ClusterDescription) -> dict[str, str]:
    """The script that trains the description's job, over as many allocations as it takes.

    Raises:
        ValueError: The description has no section slurm, or its GPUs are not the job's workers.
    """
    slurm, job = description.slurm, description.job
    if slurm is None:
        raise UserError("the description has no section slurm: add slurm.nodes and slurm.folder")
    _check_gpus(job, slurm)
    words = entrypoint(description, uri=f"file://{slurm.folder}", gpus=slurm.gpus_per_node)
    experiment = shlex.join(word for word in words[2:] if word != "--restartable")
    text = render_template("slurm/train.sbatch", **vars(description), experiment=experiment)
    return {"train.sbatch": text}


def _check_gpus(job: Job, slurm: Slurm) -> None:
    workers, gpus = job.experiment().scale.max_workers, slurm.nodes * slurm.gpus_per_node
    if gpus not in (0, workers):
        raise UserError(
            f"job.workers ({workers}) must be slurm.nodes x slurm.gpus_per_node ({gpus}), a worker "
            "on each GPU of the allocation: change one of them"
        )
