"""Options of a run that concern its length, its workers, and where its results go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bcl_ray.experiment.options.section import NAME, Section, Uri
from bcl_ray.machine.errors import UserError

Workers = Annotated[int, Field(ge=1)]


class TrainConfig(Section):
    """The training run: length, seed, precision, evaluation and checkpoints."""

    epochs: int = Field(ge=1, description="Passes over the training split.")
    seed: int = Field(
        0, ge=0, description="Seed of the initial weights, the epoch plan and every view."
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "auto",
        description="float32: everything. tf32: PyTorch's default on GPUs, where convolutions "
        "multiply with 10 bits of mantissa and matrix products stay float32. bfloat16: autocast; "
        "logits, losses and weights stay float32. auto: bfloat16 on GPUs that support it, "
        "otherwise float32.",
    )
    compile: bool = Field(
        False,
        description="Run each stage of the backbone through torch.compile. Stages are compiled "
        "separately: if the whole network were compiled, all gradients would arrive at the end "
        "of the backward pass, and their all-reduce could not overlap with it.",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of an exponential moving average of the weights, which is "
        "then evaluated and exported; 0 for none. In step t the decay is at most "
        "(1 + t) / (10 + t), so that the initial weights are forgotten in short runs too.",
    )
    eval_every: int = Field(
        1, ge=1, description="Epochs between evaluations; the last epoch is always evaluated."
    )
    geometry_every: int = Field(
        1,
        ge=1,
        description="Evaluations between those that also measure geometry, which takes a pass over "
        "a sample of training images and CPU time of one worker; the first and the last evaluation "
        "always do.",
    )
    checkpoint_every_steps: int = Field(
        0, ge=0, description="Steps between checkpoints within an epoch; 0: at epoch ends only."
    )

    def evaluates(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends with an evaluation."""
        return (epoch + 1) % self.eval_every == 0 or epoch + 1 == self.epochs

    def measures_geometry(self, epoch: int) -> bool:
        """Whether the evaluation of an epoch, counted from 0, measures geometry."""
        number = -(-(epoch + 1) // self.eval_every)  # of the evaluation, counted from 1
        is_last = epoch + 1 == self.epochs
        return number == 1 or number % self.geometry_every == 0 or is_last


class ScaleConfig(Section):
    """Workers and their resources, which determine how fast a run goes, not its result.

    There are three exceptions: rounding, batch norm per worker, and precision 'auto', which
    chooses bfloat16 on GPUs only.
    """

    workers: Workers | tuple[Workers, Workers] = Field(
        1,
        description="Number of Ray Train workers, which must divide the global batch size. "
        "[least, most]: as many as fit in the cluster each time workers start; the global batch "
        "size and the learning rate do not change.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU per worker if the cluster has enough, otherwise CPUs."
    )
    cpus_per_worker: float = Field(
        1.0, gt=0, description="CPUs that are reserved for a worker's training step."
    )
    gpus_per_worker: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a GPU that is reserved for a worker that trains on one. Below 1 only "
        "with a single worker, so that trials of a search can share a GPU.",
    )
    # Between two tasks a CPU waits for Ray Data's loop, 30 to 70 ms: a third task for two CPUs
    # works meanwhile (benchmarks/README.md, stream.py).
    cpus_per_data_task: float = Field(
        0.66,
        gt=0,
        description="CPUs that are reserved for one task that reads, decodes and crops. Below 1, "
        "more tasks than CPUs share these, so that none is idle between two tasks.",
    )
    data_cpus: float | None = Field(
        None,
        gt=0,
        description="Most CPUs that data tasks use at once; null for all that workers leave free.",
    )
    prefetch_batches: int = Field(4, ge=1, description="Batches that each worker prefetches.")
    max_failures: int = Field(
        3,
        ge=0,
        description="Worker failures after which the run still continues. A node that is removed "
        "with notice does not count.",
    )
    wait_timeout: float = Field(
        1800.0,
        gt=0,
        description="Seconds that a run waits for its workers' CPUs and GPUs, at the start and "
        "after a failure. After that it ends, and reports what is missing.",
    )
    hang_timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds without a step or an evaluated batch after which a worker counts as "
        "hung: its stack traces are logged, and all workers restart from the last checkpoint. Must "
        "be longer than outages of the object store, during which workers wait.",
    )

    @model_validator(mode="after")
    def _check_workers(self) -> "ScaleConfig":
        if self.min_workers > self.max_workers:
            raise UserError(
                f"scale.workers [{self.min_workers}, {self.max_workers}] must be [least, most]"
            )
        if self.gpus_per_worker < 1 and self.max_workers > 1:
            raise UserError(
                f"scale.gpus_per_worker ({self.gpus_per_worker:g}) must be 1 with more than one "
                "worker: NCCL refuses two workers of a run on one GPU"
            )
        return self

    @property
    def min_workers(self) -> int:
        """The smallest allowed number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The largest allowed number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def shown_workers(self) -> str:
        """The number of workers as text, such as "1 worker" or "2 to 8 workers"."""
        if isinstance(self.workers, int):
            return "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return "{} to {} workers".format(*self.workers)


class TrackingConfig(Section):
    """Where the files of a run and its MLflow records go."""

    runs: Uri = Field(
        "runs", description="Folder or URI of all runs; a run's files are in <runs>/<its name>."
    )
    run: str | None = Field(
        None,
        pattern=f"^{NAME.pattern}$",
        description="Name of the run; null for the experiment's name and the time.",
    )
    uri: Uri | None = Field(
        None,
        description="MLflow tracking URI; null for MLFLOW_TRACKING_URI, or SQLite in <runs> if "
        "that is not set.",
    )
    experiment: str = Field("bcl-ray", description="MLflow experiment that contains the run.")
    report: bool = Field(
        True, description="Draw figures and a report at the end, which takes about 5 s of one CPU."
    )
