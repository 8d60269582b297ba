"""Options of the network, the loss and the optimiser."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.choices import BACKBONES, LOSSES
from bcl_ray.experiment.options.section import Section, Uri
from bcl_ray.machine.errors import UserError

TIMM_WEIGHTS = "timm"  # a value of model.weights


class ModelConfig(Section):
    """The network: backbone, classifier, and the projections of the contrastive branch."""

    backbone: Annotated[str, AfterValidator(BACKBONES.checked)] = Field(
        description=f"{BACKBONES.described()}."
    )
    width: int = Field(
        16,
        ge=4,
        description="Channels of the first stage of a network for small images; 16 as published.",
    )
    classifier: Literal["cosine", "linear"] = Field(
        "cosine", description="cosine: scale * cosine similarity, no bias. linear: with bias."
    )
    scale: float = Field(30.0, gt=0, description="Scale of the cosine classifier's logits.")
    hidden_dim: int = Field(ge=1, description="Width of the projections' hidden layer.")
    feature_dim: int = Field(ge=2, description="D, the width of features and prototypes.")
    batch_norm: Literal["per_worker", "sync", "classification_stats", "frozen"] = Field(
        "per_worker",
        description="per_worker: each worker normalises with the statistics of its own images. "
        "sync: with the statistics of all workers' images. classification_stats: each worker "
        "normalises its classification views and its contrastive views separately, so the result "
        "depends on the number of workers; running statistics are those of the classification "
        "views, averaged over workers. frozen: the backbone keeps the batch norms of "
        "model.weights; the projections are as with sync.",
    )
    weights: Uri | None = Field(
        None,
        description="What the backbone starts from; null for random weights. A file or URI: "
        ".safetensors, or a state dict with the names of torchvision, timm or "
        "efficientnet_pytorch, with or without a prefix; or a checkpoint's state.pt. No code in it "
        "runs. timm: the weights that timm publishes for the backbone, which every worker "
        "downloads once.",
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Backbones of timm: probability with which an image skips the last block in "
        "training (stochastic depth), rising linearly from 0 at the first. Each worker draws for "
        "its own images.",
    )
    input_size: int | None = Field(
        None,
        ge=4,
        description="Backbones of timm that take images of one size, such as transformers: that "
        "size. It is set to views.image_size before a run begins.",
    )

    @property
    def weights_file(self) -> str | None:
        """The file or URI in `weights`, if it is one."""
        return None if self.weights == TIMM_WEIGHTS else self.weights

    @model_validator(mode="after")
    def _check_backbone(self) -> "ModelConfig":
        backbone = BACKBONES[self.backbone]
        if self.weights == TIMM_WEIGHTS and backbone.download_weights is None:
            raise UserError(
                f"model.weights '{TIMM_WEIGHTS}' needs a model.backbone of timm, such as "
                f"timm/{self.backbone}; for '{self.backbone}', name a file"
            )
        if self.drop_path and not backbone.is_layered:
            raise UserError(
                f"model.drop_path ({self.drop_path:g}) needs a model.backbone of timm, not "
                f"'{self.backbone}'"
            )
        return self


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
        description="Strength of the logit adjustment: 0 is plain cross-entropy, 1 adds the log "
        "prior of the training split. Unused by a loss without logit adjustment.",
    )
    classification_weight: float = Field(
        1.0, ge=0, description="Weight of the classification loss (lambda in the paper)."
    )
    contrastive_weight: float = Field(
        0.35,
        ge=0,
        description="Weight of the contrastive loss (mu in the paper). With 0, no contrastive "
        "views are made. Unused by a kind without a contrastive loss.",
    )
    anchor_mean: Literal["instance", "class"] = Field(
        "instance",
        description="instance: every anchor has the same weight, as in the authors' code. class: "
        "every class of the batch has the same weight.",
    )

    @model_validator(mode="after")
    def _check_weights(self) -> "LossConfig":
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
        """Whether there is a contrastive loss, and therefore contrastive views."""
        return LOSSES[self.kind].contrastive is not None and self.contrastive_weight > 0


class OptimConfig(Section):
    """The optimiser and its learning rate."""

    kind: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="sgd: SGD with momentum. adamw: AdamW with betas 0.9 and 0.999, whose weight "
        "decay is decoupled from the gradient.",
    )

    global_batch_size: int = Field(
        ge=1,
        description="Images per step over all workers; the number of workers never changes it.",
    )
    lr: float = Field(gt=0, description="Learning rate after the warm-up.")
    backbone_lr: float = Field(
        1.0,
        ge=0,
        description="Factor of the learning rate for the backbone; 0 freezes it: its weights and "
        "the statistics of its norms stay as they are, and only the rest learns.",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Backbones of timm: each layer's learning rate is this factor of the next "
        "layer's; the last has that of the backbone.",
    )
    frozen_epochs: int = Field(
        0, ge=0, description="First epochs in which the backbone is frozen, as by backbone_lr 0."
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="Largest norm of the global batch's gradient, over all parameters; a longer "
        "one is scaled to it. null for no limit.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay (of SGD: L2).")
    decay_norms_and_biases: bool = Field(
        True,
        description="Whether weight decay also applies to normalisation layers and biases, as in "
        "published recipes.",
    )
    schedule: Literal["step", "cosine"] = Field(
        description="step: the learning rate is multiplied by gamma at each milestone. cosine: it "
        "falls along half a cosine to about 0."
    )
    warmup_epochs: float = Field(0, ge=0, description="Epochs of linear warm-up from 0.")
    milestones: tuple[float, ...] = Field((), description="Schedule 'step': epochs of the decays.")
    gamma: float = Field(0.1, gt=0, le=1, description="Schedule 'step': factor of each decay.")
    cosine_per_epoch: bool = Field(
        False, description="Schedule 'cosine': constant within an epoch, as in the authors' code."
    )

    def freezes_backbone(self, epoch: int) -> bool:
        """Whether the backbone is frozen in an epoch, counted from 0."""
        return self.backbone_lr == 0 or epoch < self.frozen_epochs

    @model_validator(mode="after")
    def _check_milestones(self) -> "OptimConfig":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"optim.milestones {self.milestones} must rise")
        return self
