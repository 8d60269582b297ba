"""Options of the data set and of the views that are made of its images."""

from typing import Literal

from pydantic import Field, model_validator

from bcl_ray.experiment.options.section import Open, Section, Share, Uri
from bcl_ray.machine.errors import UserError

Triple = tuple[float, float, float]


class DataConfig(Section):
    """The data set, and how workers get its images."""

    path: Uri = Field(
        description="Folder or URI that holds manifest.json and its shards, as `bcl-ray shard` "
        "wrote them."
    )
    train_split: str = Field("train", description="Name of the split to train on.")
    eval_split: str = Field(
        "test",
        description="Name of the split for results: that of `bcl-ray evaluate`, and without a "
        "validation_split also that of the evaluations in training.",
    )
    validation_split: str | None = Field(
        None,
        description="Name of the split for evaluations in training, by which the best checkpoint "
        "is selected and probabilities are calibrated; `bcl-ray shards hold-out` cuts one from the "
        "training split. null: the run uses eval_split, and because selecting on test data is "
        "optimistic, `predict`, `export` and `register` take its last checkpoint.",
    )
    plan: Literal[1, 2] = Field(
        2,
        description="Version of the epoch plan, by which images come in which batch. 2: images "
        "of one row group meet in the same step of the same worker no more often than in a "
        "perfect shuffle, at most twice as often in an epoch of one batch; this takes memory, "
        "which `bcl-ray plan` shows. 1: they meet often, and less memory is needed; runs that "
        "began before there was version 2 go on with it.",
    )
    max_workers: int = Field(
        16,
        ge=1,
        le=256,
        description="For data.plan 1: the plan is the same for every number of workers up to this "
        "one that divides optim.global_batch_size, and another value gives another plan.",
    )
    residency: Literal["auto", "stream", "device"] = Field(
        "auto",
        description="Where training images are kept. stream: Ray Data reads, decodes and crops "
        "them on CPUs in every epoch. device: each worker's device holds all of them, decoded "
        "once, and crops them. The views are the same, bit for bit; images must have "
        "views.image_size, unless all crops are 'padded'. auto: device if it is a GPU and the "
        "images take at most a quarter of its memory, otherwise stream.",
    )

    @property
    def monitored_option(self) -> Literal["validation_split", "eval_split"]:
        """The option that names the split evaluated during training."""
        return "eval_split" if self.validation_split is None else "validation_split"

    @property
    def monitored_split(self) -> str:
        """The split evaluated during training."""
        return self.validation_split or self.eval_split


class ViewConfig(Section):
    """How one kind of view is made: cropped on the host, coloured on the device."""

    crop: Literal["resized", "padded"] = Field(
        description="resized: a random area with a random aspect ratio, resized to "
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
        "the AutoAugment policy that was learned on CIFAR-10.",
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
    cutout: int = Field(
        0, ge=0, description="Side of a square that is set to zero, in pixels; 0 for no cutout."
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> "ViewConfig":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise UserError(f"{name} ({low}, {high}) must be two positive numbers, rising")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise UserError(f"jitter {self.jitter} must be >= 0, and its last number <= 0.5")
        return self


class ViewsConfig(Section):
    """All views of an image: one for the classifier, the others for the contrastive loss.

    Options that are null become those that model.backbone was made for: of timm's networks and of
    torchvision's.
    """

    image_size: Open[int] = Field(ge=4, description="Height and width of every view, in pixels.")
    classification: ViewConfig
    contrastive: ViewConfig
    num_contrastive: int = Field(
        2,
        ge=2,
        description="Contrastive views per image (V). There are none if the loss has no "
        "contrastive part.",
    )
    eval_resize: Open[int] = Field(
        ge=4,
        description="Evaluation: the shorter side is resized to this, then the centre of "
        "views.image_size is cut out. Pixels, at least views.image_size.",
    )
    mean: Open[Triple] = Field(
        description="Channel means that are subtracted from views, on a scale of 0 to 1."
    )
    std: Open[Triple] = Field(
        description="Standard deviations of the channels, by which views are divided."
    )
    interpolation: Open[Literal["bilinear", "bicubic"]] = Field(
        "bilinear", description="How images are resized, always with antialiasing."
    )
    randaugment_ops: int = Field(2, ge=1, description="Operations per image of 'randaugment'.")
    randaugment_magnitude: float = Field(
        10.0, ge=0, le=10, description="Strength of each 'randaugment' operation, 0 to 10."
    )
    randaugment_deviation: float = Field(
        0.5, ge=0, description="Standard deviation of that strength from image to image."
    )

    def of_view(self, view: int) -> ViewConfig:
        """Options of a view by its number: 0 is for classification, the others are contrastive."""
        return self.contrastive if view else self.classification

    @model_validator(mode="after")
    def _check_ranges(self) -> "ViewsConfig":
        if None not in (self.eval_resize, self.image_size) and self.eval_resize < self.image_size:
            raise UserError(
                f"views.eval_resize ({self.eval_resize}) must be at least views.image_size "
                f"({self.image_size}): the centre is cut out of it"
            )
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"views.std {self.std} must be positive")
        return self
