"""The experiment: one frozen object, one section per concern.

Recipes make experiments (`recipes`); YAML files and overrides become them (`parse`).
"""

import hashlib
import json
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bcl_ray.experiment.choices import BACKBONES, LOSSES, load_plugins
from bcl_ray.machine.errors import UserError

Triple = tuple[float, float, float]
Share = Annotated[float, Field(ge=0, le=1)]
Workers = Annotated[int, Field(ge=1)]


def _without_password(uri: str) -> str:
    user, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise UserError(
            "a URI must not hold a password, for it is shown and stored with the run: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for an MLflow server, or the "
            "object store's own variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_password)]


class Section(BaseModel):
    """A frozen group of options; an option that it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class DataConfig(Section):
    """Which shards to learn from."""

    path: Uri = Field(
        description="Folder or URI that holds manifest.json and its shards, as `bcl-ray shard` "
        "wrote them."
    )
    train_split: str = Field("train", description="Name of the split to train on.")
    eval_split: str = Field("test", description="Name of the split to evaluate on.")
    max_workers: int = Field(
        16,
        ge=1,
        le=256,
        description="The epoch plan is the same for every number of workers up to this one that "
        "divides optim.global_batch_size. Part of the experiment: another value is another plan.",
    )
    residency: Literal["auto", "stream", "device"] = Field(
        "auto",
        description="stream: Ray Data reads, decodes and crops on CPUs, epoch by epoch. device: "
        "each worker's device holds all training images, decoded once, and crops them; bit for bit "
        "the same views, for images of views.image_size, or crops 'padded' of any. auto: device "
        "where that is a GPU and the images take at most a quarter of its memory, else stream.",
    )


class ViewConfig(Section):
    """How one kind of view is made: geometry on the host, colour on the device."""

    crop: Literal["resized", "padded"] = Field(
        description="resized: a random area at a random aspect ratio, resized to "
        "views.image_size. padded: the whole image at views.image_size, zero-padded and shifted."
    )
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Crop 'resized': smallest and largest share of the image's area."
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="Crop 'resized': smallest and largest width / height."
    )
    padding: int = Field(4, ge=0, description="Crop 'padded': pixels of padding on every side.")
    flip: Share = Field(0.5, description="Probability of a horizontal flip.")
    policy: Literal["none", "randaugment", "cifar10"] = Field(
        "none",
        description="randaugment: views.randaugment_ops random operations per image. cifar10: "
        "the learned AutoAugment policy for CIFAR-10.",
    )
    jitter: tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="Largest relative change of brightness, contrast and saturation (each >= 0), "
        "and of hue (0 to 0.5 of the circle).",
    )
    jitter_probability: Share = Field(1.0, description="Share of images that are jittered.")
    grayscale: Share = Field(0.0, description="Share of images that become gray.")
    blur: Share = Field(
        0.0,
        description="Share of images that get a Gaussian blur, as in SimCLR: sigma uniform from "
        "0.1 to 2 pixels, in a kernel a tenth as wide as the image (odd, at least 3).",
    )
    cutout: int = Field(0, ge=0, description="Side of a square of zeros, in pixels; 0: none.")

    @model_validator(mode="after")
    def _ordered(self) -> "ViewConfig":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise UserError(f"{name} ({low}, {high}) must be two positive numbers, rising")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise UserError(f"jitter {self.jitter} must be >= 0, and its last number <= 0.5")
        return self


class ViewsConfig(Section):
    """The views of an image: one for classification, the others for contrast."""

    image_size: int = Field(ge=4, description="Height and width of every view, in pixels.")
    classification: ViewConfig
    contrastive: ViewConfig
    num_contrastive: int = Field(
        2, ge=2, description="Contrastive views per image (V), for a loss that contrasts them."
    )
    eval_resize: int = Field(
        ge=4,
        description="Evaluation: the shorter side is resized to this, then the centre of "
        "views.image_size is cut out. Pixels, at least views.image_size.",
    )
    mean: Triple = Field(description="Channel means that are subtracted, on a scale of 0 to 1.")
    std: Triple = Field(description="Channel deviations that views are divided by.")
    randaugment_ops: int = Field(2, ge=1, description="Operations per image of 'randaugment'.")
    randaugment_magnitude: float = Field(
        10.0, ge=0, le=10, description="Strength of each 'randaugment' operation, 0 to 10."
    )
    randaugment_deviation: float = Field(
        0.5, ge=0, description="Standard deviation of that strength from image to image."
    )

    @model_validator(mode="after")
    def _covers(self) -> "ViewsConfig":
        if self.eval_resize < self.image_size:
            raise UserError(
                f"views.eval_resize ({self.eval_resize}) must be at least views.image_size "
                f"({self.image_size}): the centre is cut out of it"
            )
        if min(self.std) <= 0:
            raise UserError(f"views.std {self.std} must be positive")
        return self


class ModelConfig(Section):
    """The network: backbone, classifier, and the projections of the contrastive branch."""

    backbone: Annotated[str, AfterValidator(BACKBONES.checked)] = Field(
        description=f"{BACKBONES.described()}."
    )
    width: int = Field(
        16, ge=4, description="Channels of the first stage of resnet8 / 20 / 32; 16 as published."
    )
    classifier: Literal["cosine", "linear"] = Field(
        "cosine", description="cosine: scale * cosine similarity, no bias. linear: with bias."
    )
    scale: float = Field(30.0, gt=0, description="Scale of the cosine classifier's logits.")
    hidden_dim: int = Field(ge=1, description="Width of the projections' hidden layer.")
    feature_dim: int = Field(ge=2, description="D, the width of features and prototypes.")
    batch_norm: Literal["per_worker", "sync", "classification_stats"] = Field(
        "per_worker",
        description="per_worker: each worker normalises by its own images. sync: by all workers' "
        "images. classification_stats: each worker normalises its classification views, and then "
        "its contrastive views, by themselves, so that the number of workers matters; running "
        "statistics are those of classification views, averaged over workers.",
    )
    weights: Uri | None = Field(
        None,
        description="File or URI of a state dict that the backbone starts from: as torchvision "
        "publishes it, or a checkpoint's state.pt; none: random weights. Loaded with "
        "weights_only=True, so no code in it runs.",
    )


class LossConfig(Section):
    """classification_weight * classification + contrastive_weight * contrastive."""

    kind: Annotated[str, AfterValidator(LOSSES.checked)] = Field(
        "bcl",
        description=f"{LOSSES.described()}. Without a contrastive loss there are no contrastive "
        "views.",
    )
    temperature: float = Field(
        0.1, gt=0, description="Divides cosine similarities in the contrastive branch; unitless."
    )
    tau: float = Field(
        1.0,
        ge=0,
        description="Logit-adjustment strength; 0: plain cross-entropy, 1: the training prior. "
        "Unused by kind 'ce'.",
    )
    classification_weight: float = Field(
        1.0, ge=0, description="Weight of the classification loss (lambda in the paper)."
    )
    contrastive_weight: float = Field(
        0.35,
        ge=0,
        description="Weight of the contrastive loss (mu in the paper); 0 makes no contrastive "
        "views at all. Unused by a kind without a contrastive loss.",
    )
    anchor_mean: Literal["instance", "class"] = Field(
        "instance",
        description="instance: every anchor weighs the same, as in the authors' code. class: "
        "every class of the batch weighs the same.",
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> "LossConfig":
        if self.classification_weight > 0 or self.is_contrastive:
            return self
        if LOSSES[self.kind].contrastive:
            raise UserError(
                "loss.classification_weight and loss.contrastive_weight are both 0: "
                "set at least one of them"
            )
        others = " or ".join(f"'{loss.name}'" for loss in LOSSES if loss.contrastive)
        raise UserError(
            f"loss.classification_weight is 0, and loss.kind '{self.kind}' has no other loss: "
            f"set it above 0, or take kind {others}"
        )

    @property
    def is_contrastive(self) -> bool:
        """Whether there is a contrastive loss, and so contrastive views."""
        return LOSSES[self.kind].contrastive is not None and self.contrastive_weight > 0


class OptimConfig(Section):
    """SGD and its learning rate."""

    global_batch_size: int = Field(
        ge=1,
        description="Images per step over all workers; the number of workers never changes it.",
    )
    lr: float = Field(gt=0, description="Learning rate after the warm-up.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, description="Decay of weights (L2).")
    decay_norms_and_biases: bool = Field(
        True, description="Whether weight decay reaches norms and biases, as published recipes do."
    )
    schedule: Literal["step", "cosine"] = Field(
        description="step: times gamma at each milestone. cosine: half a cosine down to about 0."
    )
    warmup_epochs: float = Field(0, ge=0, description="Epochs of linear warm-up from 0.")
    milestones: tuple[float, ...] = Field((), description="Schedule 'step': epochs of the decays.")
    gamma: float = Field(0.1, gt=0, le=1, description="Schedule 'step': factor of each decay.")
    cosine_per_epoch: bool = Field(
        False, description="Schedule 'cosine': constant within an epoch, as the authors' code."
    )

    @model_validator(mode="after")
    def _rising(self) -> "OptimConfig":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"optim.milestones {self.milestones} must rise")
        return self


class TrainConfig(Section):
    """The run: how long, from which seed, in which precision, what is kept."""

    epochs: int = Field(ge=1, description="Passes over the training split.")
    seed: int = Field(0, ge=0, description="Seed of the weights, the plan and every view.")
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "auto",
        description="float32: everywhere. tf32: as PyTorch does by itself on GPUs, convolutions "
        "multiply with 10 bits of mantissa; products of matrices stay float32. bfloat16: autocast; "
        "logits, losses and weights stay float32. auto: bfloat16 on GPUs that have it, else "
        "float32.",
    )
    compile: bool = Field(
        False,
        description="Run each stage of the backbone through torch.compile: stage by stage, since "
        "gradients of a network compiled whole all arrive at the end of backward, too late for "
        "their sum over workers to overlap with it.",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Per-step decay of the weights' moving average, which is what is evaluated "
        "and exported; in step t at most (1 + t) / (10 + t), so that initial weights are forgotten "
        "in short runs too; 0: none.",
    )
    eval_every: int = Field(1, ge=1, description="Epochs between evaluations; the last always is.")
    checkpoint_every_steps: int = Field(
        0, ge=0, description="Steps between checkpoints within an epoch; 0: at epoch ends only."
    )


class ScaleConfig(Section):
    """Workers and their resources: how fast a run goes, not what it computes.

    But for rounding, for batch norm per worker, and for bfloat16, which only GPUs choose by
    themselves.
    """

    workers: Workers | tuple[Workers, Workers] = Field(
        1,
        description="Ray Train workers, which must divide the global batch. [least, most]: as many "
        "of them as the cluster has room for, whenever workers start; the global batch and the "
        "learning rate stay what they are.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU per worker when the cluster has enough, else CPUs."
    )
    cpus_per_worker: float = Field(
        1.0, gt=0, description="CPUs that a worker's training step holds."
    )
    gpus_per_worker: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a GPU that a worker holds, where it trains on one. Below 1 with one "
        "worker only, for trials of a search that share a GPU.",
    )
    cpus_per_data_task: float = Field(
        1.0, gt=0, description="CPUs of one task that reads, decodes and crops."
    )
    data_cpus: float | None = Field(
        None,
        gt=0,
        description="Most CPUs that data tasks use at once; none: all that workers leave.",
    )
    prefetch_batches: int = Field(4, ge=1, description="Batches ready ahead, per worker.")
    max_failures: int = Field(
        3,
        ge=0,
        description="Worker failures that a run survives; a node taken away with notice is none.",
    )
    wait_timeout: float = Field(
        1800.0,
        gt=0,
        description="Seconds that a run waits for its workers' CPUs and GPUs, when it begins and "
        "after a failure; then it ends, and says what is missing.",
    )
    hang_timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds without a step or an evaluated batch after which a worker is taken "
        "to hang: its stacks are logged, and all workers start again from the last checkpoint. "
        "Outages of the object store, which are waited for, are to be shorter.",
    )

    @model_validator(mode="after")
    def _rising(self) -> "ScaleConfig":
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
        """The fewest workers to train with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers to train with."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def shown_workers(self) -> str:
        """How many workers, for a person."""
        if isinstance(self.workers, int):
            return "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return "{} to {} workers".format(*self.workers)


class TrackingConfig(Section):
    """Where a run's files and its records go."""

    runs: Uri = Field("runs", description="Folder or URI; a run lives in <runs>/<its name>.")
    run: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run; none: the experiment's name and the time.",
    )
    uri: Uri | None = Field(
        None,
        description="MLflow tracking URI; none: MLFLOW_TRACKING_URI, else SQLite in <runs>.",
    )
    experiment: str = Field("bcl-ray", description="MLflow experiment that holds the run.")
    report: bool = Field(
        True, description="Draw figures and a report at the end; takes about 5 s of one CPU."
    )


class Experiment(Section):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The recipe's name.")
    data: DataConfig
    views: ViewsConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    scale: ScaleConfig = ScaleConfig()
    tracking: TrackingConfig = TrackingConfig()
    plugins: tuple[str, ...] = Field(
        (),
        description="Modules that are imported wherever the experiment is read, on the driver, by "
        "workers and in trials, and that add losses, backbones or sources of their own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_plugins(cls, content: Any) -> Any:
        """Before sections are validated, for those name what plugins add."""
        if isinstance(content, dict):
            load_plugins(content.get("plugins") or ())
        return content

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Another process, such as a data task, knows the plugins' names too."""
        super().__setstate__(state)
        load_plugins(self.plugins)

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        batch, scale = self.optim.global_batch_size, self.scale
        for workers in (scale.min_workers, scale.max_workers):
            if batch % workers:
                raise UserError(
                    f"optim.global_batch_size ({batch}) must be divisible by scale.workers "
                    f"({workers}): workers with unequal batches would hang in all-reduce"
                )
        if scale.max_workers > self.data.max_workers:
            raise UserError(
                f"scale.workers ({scale.max_workers}) must be at most data.max_workers "
                f"({self.data.max_workers}): raise data.max_workers to plan for more"
            )
        return self

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers that the run may have, rising: divisors of the global batch."""
        counts = range(self.scale.min_workers, self.scale.max_workers + 1)
        return tuple(n for n in counts if self.optim.global_batch_size % n == 0)

    @property
    def least_data_cpus(self) -> float:
        """CPUs that data tasks need at least, over all workers; there are none without a stream."""
        if self.data.residency == "device":
            return 0.0
        return max(self.scale.data_cpus or 0.0, self.scale.cpus_per_data_task)

    @property
    def num_contrastive(self) -> int:
        """V: contrastive views that are made per image; 0 when no loss contrasts them."""
        return self.views.num_contrastive if self.loss.is_contrastive else 0

    def to_yaml(self) -> str:
        """The complete experiment as YAML that `from_yaml` resolves to the same one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def computed(self) -> dict[str, Any]:
        """Options that change what is computed, by their full names: section.field."""
        found: dict[str, Any] = {}

        def add(name: str, value: Any) -> None:
            if not isinstance(value, dict):
                found[name] = value
                return
            for key, inner in value.items():
                add(f"{name}.{key}" if name else key, inner)

        add("", self._content())
        return found

    def digest(self) -> str:
        """Twelve hex digits of what is computed: not of scale, of tracking, or where data lies."""
        content = json.dumps(self._content(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def _content(self) -> dict[str, Any]:
        where = {"path", "residency"}
        return self.model_dump(
            mode="json", exclude={"scale": True, "tracking": True, "plugins": True, "data": where}
        )
