"""Options of the network, the loss and the optimiser."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.choices import BACKBONES, LOSSES
from bcl_ray.experiment.options.section import Section, Uri
from bcl_ray.machine.errors import UserError


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
    batch_norm: Literal["per_worker", "sync", "classification_stats"] = Field(
        "per_worker",
        description="per_worker: each worker normalises with the statistics of its own images. "
        "sync: with the statistics of all workers' images. classification_stats: each worker "
        "normalises its classification views and its contrastive views separately, so the result "
        "depends on the number of workers; running statistics are those of the classification "
        "views, averaged over workers.",
    )
    weights: Uri | None = Field(
        None,
        description="File or URI of a state dict that the backbone starts from: as torchvision "
        "publishes it, or a checkpoint's state.pt; null for random weights. Loaded with "
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
    """SGD and its learning rate."""

    global_batch_size: int = Field(
        ge=1,
        description="Images per step over all workers; the number of workers never changes it.",
    )
    lr: float = Field(gt=0, description="Learning rate after the warm-up.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay (L2).")
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

    @model_validator(mode="after")
    def _check_milestones(self) -> "OptimConfig":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"optim.milestones {self.milestones} must rise")
        return self
